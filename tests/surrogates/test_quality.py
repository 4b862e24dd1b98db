"""Surrogates from moments, and what their quality says: lower bounds of the distance, and no more."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tiny
from expunge import NewtonRemoval, load_state, record, save_state
from expunge.errors import DataError, SettingError, StateError
from expunge.states import ClassMoments
from expunge.states.statistics import read_rows
from expunge.surrogates import Direction, SurrogateQuality, measure_quality, sample_gaussians

MODEL = tiny.SHAPES["mlp"].build().eval()


def state_of(data: TensorDataset) -> ClassMoments:
    state = record(MODEL, tiny.TASK, data, kind="moments")
    assert isinstance(state, ClassMoments)
    return state


def test_moments_are_those_of_the_rows_and_rows_can_be_taken_out(tmp_path: Path) -> None:
    data = tiny.vectors(per_class=30)
    inputs, labels = data.tensors
    state = state_of(TensorDataset(1e3 + inputs, labels))
    left = state.without(*(each[:20] for each in read_rows(tiny.TASK, TensorDataset(1e3 + inputs, labels))))
    for label in range(tiny.CLASSES):
        rows = (1e3 + inputs[20:][labels[20:] == label]).double()
        assert left.counts[label] == len(rows)
        torch.testing.assert_close(left.means[label], rows.mean(0), rtol=1e-13, atol=0)
        torch.testing.assert_close(left.covariances[label], rows.T.cov(correction=0), rtol=1e-8, atol=1e-8)
    every = (1e3 + inputs[20:]).double()
    torch.testing.assert_close(left.overall()[1], every.T.cov(correction=0), rtol=1e-8, atol=1e-8)
    save_state(state, tmp_path)
    assert load_state(tmp_path).digest() == state.digest()


def test_gaussians_have_the_recorded_moments() -> None:
    data = tiny.vectors(per_class=50)
    state = state_of(data)
    drawn = sample_gaussians(state, tiny.TASK, 20_000, seed=1)
    inputs, labels = drawn.tensors
    for label in range(tiny.CLASSES):
        rows = inputs[labels == label].double()
        error = rows.std(0) / math.sqrt(len(rows))
        assert float(((rows.mean(0) - state.means[label]) / error).abs().max()) < 4.5
        assert float((rows.T.cov() - state.covariances[label]).norm() / state.covariances[label].norm()) < 0.1
    assert torch.equal(inputs, sample_gaussians(state, tiny.TASK, 20_000, seed=1).tensors[0])
    assert not torch.equal(inputs, sample_gaussians(state, tiny.TASK, 20_000, seed=2).tensors[0])
    shaped = sample_gaussians(state, tiny.TASK, 7, shape=(3, 2, 2), bounds=(0.0, 1.0))
    assert shaped.tensors[0].shape == (7, 3, 2, 2)
    assert 0 <= float(shaped.tensors[0].min()) <= float(shaped.tensors[0].max()) <= 1
    with pytest.raises(DataError, match=r"shape \(3, 5\) do not hold the 12 features"):
        sample_gaussians(state, tiny.TASK, 7, shape=(3, 5))


def shifted(shift: float, seed: int, rows: int = 400) -> TensorDataset:
    """Standard normal inputs with the first feature moved, of all classes alike."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, tiny.FEATURES, generator=generator)
    inputs[:, 0] += shift
    return TensorDataset(inputs, torch.arange(rows) % tiny.CLASSES)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, 6.0])
def test_bounds_stay_below_the_true_distance(shift: float) -> None:
    truth = math.erf(shift / 2 / math.sqrt(2))  # of two normal distributions of unit variance
    found: list[SurrogateQuality] = []
    for seed in range(10):
        moments = state_of(shifted(0.0, 100 + seed, rows=4000))
        found.append(
            measure_quality(
                shifted(shift, seed), MODEL, tiny.TASK, moments=moments, real=shifted(0, 50 + seed), seed=seed
            )
        )
    assert all(each.distance_at_least <= truth + 1e-9 for each in found)
    means = [next(figure for figure in each.figures if figure.name == "means").value for each in found]
    assert tiny.interval(means)[0] < truth + 0.02
    if shift >= 2:  # the gap's share of 2 (1 + 1) + shift², or what a classifier sees
        assert tiny.interval([each.distance_at_least for each in found])[0] > 0.4 * truth


def test_class_shares_and_confidence_are_compared() -> None:
    inputs, _ = shifted(0.0, 1, rows=2000).tensors
    lopsided = TensorDataset(inputs, torch.zeros(2000, dtype=torch.long))
    found = measure_quality(lopsided, MODEL, tiny.TASK, shares=[0.25] * 4, confidence=1.0)
    figures = {figure.name: figure for figure in found.figures}
    assert figures["class shares"].value == pytest.approx(0.75)
    assert figures["class shares"].direction is Direction.LOWER_BOUND
    alone = measure_quality(lopsided, MODEL, tiny.TASK, shares=[0.25] * 4)
    assert 0.6 < alone.distance_at_least < 0.75
    said = tiny.logits(MODEL, lopsided).softmax(1).amax(1).double().mean()
    assert found.confidence == pytest.approx(float(said), abs=1e-6)
    assert figures["confidence"].value == pytest.approx((1 - float(said)) / 0.75, abs=1e-6)
    assert SurrogateQuality.model_validate_json(found.model_dump_json()) == found


def test_without_knowledge_nothing_is_claimed() -> None:
    found = measure_quality(shifted(0.0, 1), MODEL, tiny.TASK)
    assert found.figures == ()
    assert found.distance_at_least == 0


def test_no_estimate_becomes_a_bound() -> None:
    found = measure_quality(shifted(6.0, 1), MODEL, tiny.TASK, real=shifted(0.0, 2))
    assert found.distance_at_least > 0.5
    settings = {"l2": 0.01, "training_examples": 400, "training_residual": 1e-6, "curvature": "surrogate"}
    with pytest.raises(SettingError, match="surrogate_distance"):
        NewtonRemoval(**settings, surrogate_distance=found)
    with pytest.raises(SettingError, match=r"the declared distance is 0\.1, but the surrogate is at least"):
        found.check_declared(0.1)
    assert NewtonRemoval(**settings, surrogate_distance=found.check_declared(1.0)).surrogate_distance == 1.0
    assert all(figure.direction in (Direction.LOWER_BOUND, Direction.NO_BOUND) for figure in found.figures)


def test_what_cannot_be_compared_is_refused() -> None:
    data = shifted(0.0, 1)
    with pytest.raises(DataError, match="the surrogate have 8 examples, too few"):
        measure_quality(tiny.vectors(per_class=2), MODEL, tiny.TASK)
    narrow = TensorDataset(torch.zeros(30, 3), torch.zeros(30, dtype=torch.long))
    with pytest.raises(DataError, match="the surrogate has 12 features, the real data have 3"):
        measure_quality(data, MODEL, tiny.TASK, real=narrow)
    with pytest.raises(SettingError, match="shares must be 4 numbers from 0 that sum to 1"):
        measure_quality(data, MODEL, tiny.TASK, shares=[0.5, 0.5])
    with pytest.raises(SettingError, match=r"confidence must lie between 1/4 and 1, not 0\.1"):
        measure_quality(data, MODEL, tiny.TASK, confidence=0.1)
    wide = TensorDataset(torch.zeros(2, 20_000), torch.tensor([0, 1]))
    with pytest.raises(StateError, match="the products of 20000 features in 4 classes take"):
        record(nn.Linear(20_000, 4), tiny.TASK, wide, kind="moments")
