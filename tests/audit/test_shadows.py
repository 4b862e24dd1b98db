"""Shadows: what a method does to models that differ by chance, and what single examples tell."""

import copy
import dataclasses
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

import heads
import tiny
from digits_problem import FORGOTTEN, QUIET, SETTINGS
from expunge import (
    SISA,
    Evidence,
    FineTune,
    HeadOptimum,
    NewtonRemoval,
    Problem,
    References,
    Retrain,
    Run,
    Sharded,
    Stage,
    Supervised,
    Unlearned,
    audit,
    split,
    unlearn,
)
from expunge.audit import FleetSettings
from expunge.audit.attack_scores import across_models, evaluate_attack
from expunge.audit.evidence import Side
from expunge.audit.portrait import Sitting
from expunge.audit.shadows import Shadows, require_unlearnable, shadow_seed
from expunge.data import MapDataset, union
from expunge.errors import MissingNeedError, ReferenceModelError, SavedModelError, SettingError
from expunge.networks import mlp

SHADOWS = 6
LITTLE = FineTune((Stage(1e-3, steps=5),))
SHARE = "membership (U-LiRA), share taken for unlearned"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetSettings:
    return FleetSettings(cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def shadowed(problem: Problem, references: References, fleet: FleetSettings) -> References:
    models = list(references.oracles.models)
    return References.prepare(problem, models, seed=1, settings=SETTINGS, execution=QUIET, shadows=SHADOWS, fleet=fleet)


@pytest.fixture(scope="module")
def evidence(shadowed: References) -> Evidence:
    return shadowed.compare(unlearn(shadowed.problem, LITTLE, execution=QUIET))


def test_what_was_hardly_unlearned_is_taken_for_unlearned_on_every_example(evidence: Evidence):
    measure = evidence.measure(SHARE, "forget")

    assert measure.side is Side.ABOVE
    assert measure.unlearned.value == 1
    attacks = {attack.attack: attack for attack in evidence.membership}
    assert attacks["membership (U-LiRA)"].unlearned.auc.value > 0.95
    assert attacks["membership (RMIA online)"].unlearned.auc.value > 0.95
    assert all(0.2 < oracle.auc < 0.8 for oracle in attacks["membership (RMIA online)"].oracles)
    assert attacks["membership (U-LiRA)"].unlearned.epsilon is None


def test_retraining_is_not_held_against_itself(shadowed: References):
    evidence = shadowed.compare(unlearn(shadowed.problem, Retrain(), seed=100, execution=QUIET))

    assert evidence.measure(SHARE, "forget").side is Side.INSIDE
    assert evidence.margins["forget"].p_values[0] > 0.02
    assert np.mean(evidence.epsilons.estimates) < evidence.epsilons.largest


def test_single_examples_are_told_by_their_position(evidence: Evidence, shadowed: References):
    forget = shadowed.problem.forget

    assert len(evidence.epsilons.estimates) == len(evidence.epsilons.lower_bounds) == len(forget)
    assert set(evidence.margins) == {"forget", "retain", "holdout"}
    away = [abs(leak.deviations) for leak in evidence.leaks]
    assert len(away) == 10
    assert away == sorted(away, reverse=True)
    for leak in evidence.leaks:
        inputs = torch.as_tensor(forget[leak.position][0])[None]
        answered = unlearn(shadowed.problem, LITTLE, execution=QUIET).model(inputs).argmax()
        assert leak.quality == float(answered == FORGOTTEN)
        assert leak.likelihood_ratio > 0


def test_positions_are_those_in_the_forget_set_where_only_some_examples_are_measured(
    problem: Problem, references: References
):
    settings = dataclasses.replace(SETTINGS, examples=40)
    few = References.prepare(problem, list(references.oracles.models[:4]), seed=1, settings=settings, execution=QUIET)
    evidence = few.compare(unlearn(problem, LITTLE, execution=QUIET))

    positions = [leak.position for leak in evidence.leaks]
    assert max(positions) >= 40
    assert set(positions) <= set(few.sitting.positions["forget"].tolist())


def test_a_second_audit_unlearns_no_shadow_again(
    shadowed: References, fleet: FleetSettings, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a shadow is unlearned again")

    result = unlearn(shadowed.problem, LITTLE, execution=QUIET)
    monkeypatch.setattr(sys.modules[Shadows.__module__], "unlearn", refused)
    again = shadowed.compare(result)

    assert again.epsilons == evidence.epsilons
    other = unlearn(shadowed.problem, FineTune((Stage(1e-3, steps=6),)), execution=QUIET)
    with pytest.raises(AssertionError, match="unlearned again"):
        shadowed.compare(other)


def test_a_result_from_a_folder_needs_its_method(shadowed: References, tmp_path: Path):
    unlearn(shadowed.problem, LITTLE, execution=QUIET).save(tmp_path)

    with pytest.raises(MissingNeedError, match="pass `method=`"):
        shadowed.compare(Unlearned.load(tmp_path, shadowed.problem))
    with pytest.raises(SavedModelError, match="another method, or of other settings"):
        Unlearned.load(tmp_path, shadowed.problem, method=FineTune((Stage(1e-3, steps=6),)))
    loaded = Unlearned.load(tmp_path, shadowed.problem, method=LITTLE)
    assert shadowed.compare(loaded).epsilons is not None


def test_shadows_need_what_they_are_trained_on(problem: Problem, references: References):
    bare = dataclasses.replace(problem, recipe=None)

    with pytest.raises(MissingNeedError, match="`recipe=`, or audit with shadows=0"):
        References.prepare(bare, list(references.oracles.models), execution=QUIET, shadows=2)


def test_subgroups_are_judged_on_what_is_kept(problem: Problem, references: References):
    labels = problem.task.labels_of(problem.holdout)
    sides = ["left" if position % 3 else "right" for position in range(len(labels))]
    models = list(references.oracles.models[:4])
    prepared = References.prepare(
        problem, models, seed=1, settings=SETTINGS, execution=QUIET, subgroups={"side": sides}
    )
    result = unlearn(problem, LITTLE, execution=QUIET)
    evidence = prepared.compare(result)

    chosen = torch.tensor([side == "left" for side in sides]) & (labels != FORGOTTEN)
    inputs = torch.stack([torch.as_tensor(problem.holdout[place][0]) for place in chosen.nonzero().flatten().tolist()])
    right = (result.model(inputs).argmax(1) == labels[chosen]).double().mean()
    measure = evidence.measure("accuracy", "side: left")
    assert measure.unlearned.value == pytest.approx(float(right))
    assert measure.aspect == "utility"


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([1, 2], "2 values, the holdout 497"),
        ([0] * 97 + [1 + place // 5 for place in range(400)], "81 different values"),
        (list(range(497)), "fewer than 20 examples, too few to judge; does it name persons"),
    ],
)
def test_subgroups_that_cannot_be_used_are_refused(
    problem: Problem, references: References, values: list[int], error: str
):
    with pytest.raises(SettingError, match=error):
        References.prepare(
            problem, list(references.oracles.models[:2]), settings=SETTINGS, execution=QUIET, subgroups={"age": values}
        )


def test_the_whole_is_in_the_order_of_the_dataset_it_came_from(problem: Problem):
    whole = union(problem.forget, problem.retain)
    other = union(problem.forget, TensorDataset(torch.ones(2, 64), torch.tensor([1, 2])))

    assert len(whole) == 1300
    assert int(torch.as_tensor([whole[place][1] for place in range(1300)]).eq(FORGOTTEN).sum()) == len(problem.forget)
    assert len(other) == len(problem.forget) + 2
    assert int(other[len(problem.forget)][1]) == 1


def test_intervals_of_scores_held_against_an_oracle_are_over_models():
    """Scores of one model move together, so intervals over examples would miss one half most of the time."""
    random, covered, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        shifts = random.normal(0, 1, 12)
        apart, *models = (shift + random.normal(0, 0.3, 150) for shift in shifts)
        unlearned, *oracles = (evaluate_attack(scores, apart) for scores in models)
        found = across_models(unlearned, oracles)
        typical = float(np.mean([oracle.auc.value for oracle in oracles]))
        covered += typical in found.auc.interval
        assert found.epsilon is None

    assert stats.binomtest(covered, trials, 0.95).pvalue > 0.001 or covered / trials > 0.95


def test_confidence_that_is_saturated_leaves_single_examples_out(problem: Problem, references: References):
    models = [copy.deepcopy(model) for model in references.oracles.models[:4]]
    for model in models:
        with torch.no_grad():
            problem.task.head_of(model).bias[FORGOTTEN] = -1e4
    prepared = References.prepare(problem, models, seed=1, settings=SETTINGS, execution=QUIET)

    evidence = prepared.compare(unlearn(problem, LITTLE, execution=QUIET))

    assert evidence.leaks == []
    assert [each.name for each in evidence.percentiles] == ["divergence from the oracles"]
    assert any("confidence in the forget set is saturated" in note for note in evidence.notes)


def test_an_attack_that_tells_nothing_is_not_judged(evidence: Evidence):
    with pytest.raises(KeyError):
        evidence.measure("membership (RMIA), area", "forget")
    assert any("gives every example the same score on every oracle" in note for note in evidence.notes)


def test_numbers_that_cannot_be_used_are_refused_before_anything_is_trained(problem: Problem):
    with pytest.raises(SettingError, match="one shadow tells nothing"):
        References.prepare(problem, 3, execution=QUIET, shadows=1)
    with pytest.raises(SettingError, match="a seed must be 0 or more, not -1"):
        References.prepare(problem, 3, execution=QUIET, seed=-1)


def refused_recipe(dataset: MapDataset, seed: int) -> nn.Module:
    raise AssertionError(f"a model is trained on {len(dataset)} examples with seed {seed}")


def test_a_method_that_deletes_by_a_state_of_the_original_is_refused_before_anything_is_trained():
    data = heads.data()
    request = dataclasses.replace(heads.problem(heads.fitted(data), data, [3]), recipe=refused_recipe)
    result = unlearn(request, NewtonRemoval(), execution=QUIET)

    with pytest.raises(MissingNeedError, match=r"'curvature'.*nothing is recorded; audit with shadows=0"):
        audit(result, oracles=2, shadows=2, execution=QUIET)


def test_a_recipe_that_adds_the_noise_of_a_certificate_trains_no_shadow():
    data = heads.data()
    noisy = HeadOptimum(heads.clipped, tiny.TASK, heads.L2, sigma=0.4)
    request = dataclasses.replace(heads.problem(heads.fitted(data), data, [3], state=False), recipe=noisy)

    with pytest.raises(ReferenceModelError, match=r"noise of sigma 0\.4: .* audit with shadows=0"):
        References.prepare(request, 2, shadows=2, execution=QUIET)


def test_shadows_of_a_method_that_only_looks_at_a_state_have_none():
    """The state shows that the sets are the training set of the original; of shadows the audit knows it."""
    data = heads.data()
    request = dataclasses.replace(heads.problem(heads.fitted(data), data, [3]), recipe=refused_recipe)
    method = NewtonRemoval("retain", l2=heads.L2)
    others = [heads.fitted(heads.data(seed=seed)) for seed in (1, 2)]
    looser = dataclasses.replace(method, tolerance=1.0)

    shadows = Shadows(request, others, 0, FleetSettings(cache=False))

    assert require_unlearnable(request, method) is method
    assert shadows.signals(looser, sitting_of(request)).unlearned["forget"].shape == (2, 1)


@pytest.mark.parametrize("slices", [1, 2])
def test_a_shadow_of_shards_is_unlearned_to_the_bits_of_training_it_afresh(slices: int):
    member = Supervised(partial(mlp, tiny.FEATURES, tiny.CLASSES), tiny.TASK, 2, 16, execution=QUIET)
    data, sharded = tiny.vectors(), Sharded(member, shards=2, slices=slices)
    model, state = sharded.train(data, 0)
    parts = split(data, indices=[5, 70])
    request = Problem(model, tiny.TASK, parts.forget, parts.retain, recipe=sharded, state=state)
    sitting = sitting_of(request)

    shadows = Shadows.train(request, 2, 3, progress=False, settings=FleetSettings(cache=False))
    found = shadows.signals(SISA(), sitting).unlearned

    for number in range(2):
        afresh = sitting.signals(sharded(parts.retain, shadow_seed(3, number)))
        for name in ("forget", "retain"):
            assert np.array_equal(found[name][number], afresh[name])


def sitting_of(request: Problem) -> Sitting:
    run = Run(request.task, 0, QUIET)
    given = {"forget": request.forget, "retain": request.retain}
    return Sitting.prepare(run, run.frozen(request.model), given, SETTINGS)
