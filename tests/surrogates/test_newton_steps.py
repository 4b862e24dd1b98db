"""Newton steps with surrogate curvature come nearer to retraining than not stepping does."""

import pytest

import heads
import tiny
from expunge import Problem, Run, record, split
from expunge.data import MapDataset
from expunge.methods._newton import Objective, by_surrogate
from expunge.states import ClassMoments, HeadLoss, HeadSettings
from expunge.states.statistics import read_rows
from expunge.surrogates import Langevin, sample_energy, sample_gaussians

OBJECTIVE = Objective(HeadSettings(heads.L2, HeadLoss.SOFTMAX, None, 1e-4), 1e-10, None)


@pytest.mark.parametrize(("source", "limit"), [("moments", 0.2), ("energy", 0.5)])
def test_most_of_the_way_to_the_retrained_optimum_is_gone(source: str, limit: float) -> None:
    data = heads.data(100)
    model = heads.fitted(data)
    shares: list[float] = []
    for seed in range(5):
        parts = split(data, indices=range(15 * seed, 15 * seed + 15))
        wanted = heads.optimum(model, parts.retain)
        surrogate: MapDataset
        if source == "moments":
            state = record(model, tiny.TASK, data, kind="moments")
            assert isinstance(state, ClassMoments)
            left = state.without(*read_rows(tiny.TASK, parts.forget))
            surrogate = sample_gaussians(left, tiny.TASK, 400, seed=seed)
        else:
            box, settings = (-5.0, 5.0), Langevin(steps=400)
            surrogate, _ = sample_energy(model, tiny.TASK, 400, (tiny.FEATURES,), box, settings=settings, seed=seed)
        removal = by_surrogate(
            Problem(model, tiny.TASK, parts.forget, surrogate=surrogate),
            Run(tiny.TASK, 0, tiny.QUIET),
            OBJECTIVE,
            examples=len(data),
            distance=1.0,
            residual=1e-6,
            failure=1e-6,
        )
        missing = float((removal.weights - wanted).norm()) / float((heads.optimum(model, data) - wanted).norm())
        shares.append(missing)
    assert tiny.interval(shares)[1] < limit, shares
