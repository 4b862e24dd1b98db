"""A recipe for the optimum of a head, and for the reference of a certificate."""

import pytest
import torch
from scipy import stats

import heads
import tiny
from expunge import HeadOptimum, NewtonRemoval, Problem, References, Unlearned, record, split, unlearn
from expunge.audit import AuditSettings, FleetSettings, Relearning
from expunge.errors import ReferenceModelError, SettingError
from expunge.states import HeadLoss
from expunge.states.head import head_of, head_weights

DATA = heads.data()
RECIPE = HeadOptimum(heads.clipped, tiny.TASK, l2=heads.L2)
QUICK = AuditSettings(Relearning(steps=(0, 2)), neighbours=0)


def weights(recipe: HeadOptimum, seed: int) -> torch.Tensor:
    return head_weights(head_of(recipe(DATA, seed), tiny.TASK))


def deleted() -> tuple[Problem, Unlearned]:
    model = RECIPE(DATA, 0)
    parts = split(DATA, indices=range(0, 24, 2))
    state = record(model, tiny.TASK, DATA, l2=heads.L2)
    problem = Problem(model, tiny.TASK, parts.forget, parts.retain, state=state)
    return problem, unlearn(problem, NewtonRemoval(), execution=tiny.QUIET)


@pytest.mark.parametrize("loss", HeadLoss)
def test_without_noise_it_trains_to_the_optimum_whatever_the_seed(loss: HeadLoss) -> None:
    recipe = HeadOptimum(heads.clipped, tiny.TASK, l2=heads.L2, loss=loss)
    wanted = heads.optimum(heads.clipped(), DATA, loss=loss)
    assert torch.allclose(weights(recipe, 0), wanted, rtol=0, atol=1e-8)
    assert torch.equal(weights(recipe, 0), weights(recipe, 1))


def test_with_noise_it_draws_from_the_reference() -> None:
    middle, noisy = weights(RECIPE, 0), RECIPE.with_noise(0.25)
    draws = torch.stack([weights(noisy, seed) for seed in range(20)]) - middle
    assert torch.equal(weights(noisy, 3), weights(noisy, 3))
    assert stats.kstest(draws.flatten().numpy() / 0.25, "norm").pvalue > 1e-3


@pytest.mark.parametrize("setting", [{"l2": 0.0}, {"sigma": -1.0}, {"tolerance": 0.0}, {"loss": "hinge"}])
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(setting))):
        HeadOptimum(**{"build": heads.clipped, "task": tiny.TASK, "l2": 0.1, **setting})  # pyright: ignore


def test_an_audit_compares_a_deletion_with_draws_of_its_reference() -> None:
    problem, result = deleted()
    certificate = result.record.certificate
    assert certificate is not None
    noisy = RECIPE.with_noise(certificate.sigma)
    draws = [noisy(problem.retain, seed) for seed in range(4)]  # pyright: ignore
    evidence = References.prepare(problem, draws, settings=QUICK, execution=tiny.QUIET).compare(result)
    assert len(set(evidence.measure("divergence from the oracles", "forget").oracles)) == 4


def test_an_audit_refuses_retraining_that_has_no_noise() -> None:
    problem, _ = deleted()
    problem = Problem(problem.model, tiny.TASK, problem.forget, problem.retain, recipe=RECIPE)
    with pytest.raises(ReferenceModelError, match="ignores its seed"):
        References.prepare(problem, 3, settings=QUICK, execution=tiny.QUIET, fleet=FleetSettings(cache=False))
