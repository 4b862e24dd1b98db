"""Newton removal: the bound holds, the step helps, the noise is there, and the certificate says what it rests on."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import heads
import tiny
from expunge import (
    Certificate,
    ClosedForm,
    NewtonRemoval,
    Origin,
    Problem,
    Run,
    Tier,
    Unlearned,
    load_state,
    record,
    save_state,
    split,
    unlearn,
)
from expunge.errors import (
    BudgetError,
    ConvergenceError,
    CurvatureError,
    DataError,
    ForgetSetError,
    LabelError,
    MissingNeedError,
    NonFiniteDataError,
    SavedModelError,
    SettingError,
    ShapeError,
    StateError,
    UnknownRowError,
    UnsupportedTaskError,
)
from expunge.methods import Forgotten, Method
from expunge.networks import mlp
from expunge.privacy import gaussian_sigma
from expunge.report.page import render
from expunge.states import HeadLoss, head_rows
from expunge.states.head import head_of, head_weights
from expunge.storage import digest_model

DATA = heads.data()
MODEL = heads.fitted(DATA)
SURROGATE = heads.data(seed=5)
SEEDED = NewtonRemoval(noise="seeded")
RETAIN = NewtonRemoval("retain", l2=heads.L2)
GUESSED: dict[str, Any] = {"training_examples": 120, "training_residual": 1e-6, "surrogate_distance": 0.05}
BY_SURROGATE = NewtonRemoval("surrogate", l2=heads.L2, **GUESSED)
SOURCES: dict[str, Method] = {"state": NewtonRemoval(), "retain": RETAIN, "surrogate": BY_SURROGATE}
by_source = pytest.mark.parametrize("method", SOURCES.values(), ids=SOURCES)

SILENT: dict[str, Any] = {"sigma": None, "epsilon": 1e6, "delta": 1e-3, "epsilon_limit": 1e6}
"""So little privacy that the noise is far below the bound, which then can be looked at."""


def problem(forget: list[int] | range = range(3), **settings: Any) -> Problem:
    return heads.problem(MODEL, DATA, forget, surrogate=SURROGATE, **settings)


def forget(given: Problem, method: Method, seed: int = 0) -> Unlearned:
    return unlearn(given, method, seed=seed, execution=tiny.QUIET)


def certificate(result: Unlearned) -> Certificate:
    assert result.record.certificate is not None
    return result.record.certificate


def weights(model: nn.Module) -> Tensor:
    return head_weights(head_of(model, tiny.TASK))


def constants(result: Unlearned) -> dict[str, float]:
    return {constant.name: constant.value for constant in certificate(result).constants}


def adversaries(count: int) -> Iterator[list[int]]:
    """Forget sets that pull hardest: largest gradients, one class, one direction, wrong labels."""
    rows = head_rows(MODEL, tiny.TASK, DATA, HeadLoss.SOFTMAX)
    features = torch.cat([chunk for chunk, _ in rows.chunks()])
    pull = (rows.probabilities(weights(MODEL)) - nn.functional.one_hot(rows.labels, tiny.CLASSES)).norm(dim=1)
    hardest = pull.argsort(descending=True).tolist()
    for size in (1, 2, 5, 10, 20):
        yield hardest[:size]
    for label in range(tiny.CLASSES):
        members = (rows.labels == label).nonzero().flatten()
        yield members.tolist()
        yield members[:15].tolist()
    for axis in range(features.shape[1]):
        yield features[:, axis].argsort(descending=True)[:8].tolist()
        yield features[:, axis].argsort()[:8].tolist()
    generator = torch.Generator().manual_seed(0)
    for size in itertools.islice(itertools.cycle((1, 2, 5, 15, 40)), count):
        yield torch.randperm(len(DATA), generator=generator)[:size].tolist()


@pytest.mark.parametrize("loss", HeadLoss)
@pytest.mark.parametrize("source", ["state", "retain"])
def test_the_distance_to_retraining_never_exceeds_the_bound(source: str, loss: HeadLoss) -> None:
    model = heads.fitted(DATA, loss=loss)
    state = record(model, tiny.TASK, DATA, l2=heads.L2, loss=loss)
    method = NewtonRemoval(**SILENT) if source == "state" else NewtonRemoval("retain", l2=heads.L2, loss=loss, **SILENT)
    tightest, count = math.inf, 0
    for chosen in adversaries(60 if source == "state" else 15):
        parts = split(DATA, indices=chosen)
        found = forget(Problem(model, tiny.TASK, parts.forget, parts.retain, state=state), method)
        reference = heads.optimum(model, parts.retain, loss=loss)
        distance, bound = float((weights(found.model) - reference).norm()), certificate(found).sensitivity
        noise = certificate(found).sigma * 2 * math.sqrt(reference.numel())
        assert distance <= bound + noise, f"{len(chosen)} rows"
        assert noise < 0.1 * bound, "the noise does not hide a violation"
        tightest, count = min(tightest, bound / distance), count + 1
    assert count >= 50
    assert tightest < 100, "and the bound says something"


def test_outliers_at_the_clip_and_wrong_labels_stay_within_the_bound() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, labels = (tensor.clone() for tensor in DATA.tensors)
    inputs[:10] = 1e3 * torch.randn(10, tiny.FEATURES, generator=generator, dtype=torch.double)
    labels[10:30] = (labels[10:30] + 1) % tiny.CLASSES
    data = TensorDataset(inputs, labels)
    model = heads.fitted(data)
    for chosen in (range(1), range(10), range(10, 30), range(30)):
        given = heads.problem(model, data, chosen)
        for method in (NewtonRemoval(**SILENT), NewtonRemoval("retain", l2=heads.L2, **SILENT)):
            found = forget(given, method)
            distance = float((weights(found.model) - heads.optimum(model, given.retain)).norm())
            assert distance <= certificate(found).sensitivity * 1.1


@by_source
def test_surrogate_or_not_the_weights_before_noise_are_within_the_bound(method: NewtonRemoval) -> None:
    method = dataclasses.replace(method, **SILENT)
    for size in (1, 5, 20):
        given = problem(range(size))
        found = forget(given, method)
        distance = float((weights(found.model) - heads.optimum(MODEL, given.retain)).norm())
        assert distance <= certificate(found).sensitivity * 1.1


@pytest.mark.parametrize("name", SOURCES)
def test_the_step_shrinks_the_distance_and_no_other_scale_or_sign_does_as_well(name: str) -> None:
    method = dataclasses.replace(SOURCES[name], **SILENT, **({"noise": "seeded"}))
    for chosen in itertools.islice(adversaries(0), 0, None, 4):
        given = problem(chosen)
        step = weights(forget(given, method).model) - weights(MODEL)
        reference = heads.optimum(MODEL, given.retain) - weights(MODEL)
        distance = {scale: float((scale * step - reference).norm()) for scale in (-1.0, 0.0, 0.5, 1.0, 2.0)}
        allowed = 0.75 if name == "surrogate" else 0.3
        assert distance[1.0] < allowed * distance[0.0]
        assert distance[-1.0] > 1.5 * distance[0.0]
        if name != "surrogate":
            assert distance[1.0] < min(distance[0.5], distance[2.0])


def test_the_combined_system_is_solved_as_one() -> None:
    """Against a dense inverse of (n H_S - m H_U) / (n - m) + λ, and against combining two inverses."""
    given = problem(range(20))
    method = dataclasses.replace(BY_SURROGATE, **SILENT, noise="seeded", solver_tolerance=1e-12)
    found = forget(given, method)
    noise = certificate(found).sigma
    whole = weights(MODEL)
    forgotten, surrogate = (head_rows(MODEL, tiny.TASK, part, HeadLoss.SOFTMAX) for part in (given.forget, SURROGATE))
    removed, stays = forgotten.curvature_sum(whole), surrogate.curvature_sum(whole) * 120 / len(SURROGATE)
    identity = torch.eye(whole.numel(), dtype=torch.double)
    pull = (forgotten.gradient_sum(whole) + 20 * heads.L2 * whole).flatten() / 100
    dense = torch.linalg.solve((stays - removed) / 100 + heads.L2 * identity, pull)
    step = (weights(found.model) - whole).flatten()
    assert noise * 2 * math.sqrt(len(step)) < 0.05 * float(dense.norm())
    split_up = torch.linalg.solve(stays / 120 + heads.L2 * identity, pull) * 1.2 - 0.2 * torch.linalg.solve(
        removed / 20 + heads.L2 * identity, pull
    )
    assert float((step - dense).norm()) < noise * 2 * math.sqrt(len(step))
    assert float((step - split_up).norm()) > 5 * float((step - dense).norm())


def test_the_combined_step_without_noise_equals_the_dense_one() -> None:
    from expunge.methods._newton import Objective, by_surrogate
    from expunge.states import HeadSettings
    from expunge.training import Run

    given, whole = problem(range(20)), weights(MODEL)
    objective = Objective(HeadSettings(heads.L2), 1e-12, None)
    run = Run(tiny.TASK, execution=tiny.QUIET)
    found = by_surrogate(given, run, objective, examples=120, distance=0.05, residual=1e-6, failure=1e-6)
    forgotten, surrogate = (head_rows(MODEL, tiny.TASK, part, HeadLoss.SOFTMAX) for part in (given.forget, SURROGATE))
    system = (surrogate.curvature_sum(whole) * 120 / len(SURROGATE) - forgotten.curvature_sum(whole)) / 100
    pull = (forgotten.gradient_sum(whole) + 20 * heads.L2 * whole).flatten() / 100
    dense = torch.linalg.solve(system + heads.L2 * torch.eye(len(system), dtype=torch.double), pull)
    torch.testing.assert_close((found.weights - whole).flatten(), dense, rtol=1e-8, atol=1e-12)


@by_source
def test_noise_has_the_stated_scale_and_is_drawn_anew(method: NewtonRemoval) -> None:
    given = problem()
    first, second = (forget(given, method, seed=4) for _ in range(2))
    assert digest_model(first.model) != digest_model(second.model), "the same seed, and yet other noise"
    drawn = torch.cat([weights(forget(given, method).model).flatten() for _ in range(40)]).reshape(40, -1)
    ratio = drawn.std(0).square().mean().sqrt() / certificate(first).sigma
    assert 0.93 < float(ratio) < 1.07, "52 weights, 40 draws: more than four standard errors"
    found = certificate(first)
    assert found.sigma >= found.sensitivity * gaussian_sigma(found.epsilon, found.delta) * (1 - 1e-9)


def test_seeded_noise_repeats_and_is_no_unconditional_promise() -> None:
    first, again, other = (forget(problem(), SEEDED, seed=seed) for seed in (3, 3, 4))
    assert digest_model(first.model) == digest_model(again.model) != digest_model(other.model)
    assert first.record.guarantee is Tier.CONDITIONAL
    assert any("seed is unpredictable" in each for each in certificate(first).conditions)


def test_requests_one_by_one_lead_where_one_request_does() -> None:
    given, held, model = problem(range(1)), None, MODEL
    for index in range(6):
        parts = split(DATA, indices=[index])
        state = given.state if held is None else held
        result = forget(Problem(model, tiny.TASK, parts.forget, state=state), NewtonRemoval())
        held, model = result.state, result.model
    at_once = forget(problem(range(6)), NewtonRemoval())
    assert certificate(result).sensitivity == pytest.approx(certificate(at_once).sensitivity, rel=1e-6)
    assert "6 rows deleted since the state was recorded" in certificate(result).neighbours
    assert held is not None
    assert at_once.state is not None
    for name in ("gradient", "curvature"):
        torch.testing.assert_close(held.tensors()[name], at_once.state.tensors()[name], rtol=0, atol=1e-10)


def test_a_fixed_scale_of_noise_is_a_budget() -> None:
    needed = certificate(forget(problem(range(4)), NewtonRemoval())).sigma
    enough = forget(problem(range(4)), NewtonRemoval(sigma=2 * needed))
    assert certificate(enough).sigma == 2 * needed
    assert certificate(enough).budget_spent == pytest.approx(0.5, rel=1e-6)
    assert certificate(enough).budget_left == pytest.approx(0.5, rel=1e-6)
    given = problem(range(4))
    before = given.state.digest()
    with pytest.raises(BudgetError, match=r"noise of sigma .* hides .*; retrain"):
        forget(given, NewtonRemoval(sigma=0.5 * needed))
    assert given.state.digest() == before


def test_the_certificate_of_a_head_alone() -> None:
    result = forget(problem(feature_norm=1.0), NewtonRemoval())
    found = certificate(result)
    assert found.tier is result.record.guarantee is Tier.CERTIFIED
    assert found.delta == 1 / 120**2
    assert not found.conditions
    assert not found.assumed
    named = {constant.name: constant for constant in found.constants}
    assert named["λ"].value == heads.L2
    assert named["C"].origin is Origin.ENFORCED
    assert (named["β"].value, named["L"].value) == pytest.approx((0.5, math.sqrt(2)))
    assert named["n"].value == 120
    assert "gradient norm of at most" in found.reference
    assert any("original model" in each for each in found.not_covered)
    text = result.record.model_dump_json()
    assert type(result.record).model_validate_json(text) == result.record


def test_the_norm_of_features_is_measured_where_none_is_enforced() -> None:
    found = certificate(forget(problem(), NewtonRemoval()))
    assert {constant.name: constant.origin for constant in found.constants}["C"] is Origin.MEASURED


@pytest.mark.parametrize("source", ["state", "retain"])
def test_features_below_the_head_make_it_conditional(source: str) -> None:
    torch.manual_seed(0)
    model = heads.fitted(DATA, model=mlp(tiny.FEATURES, tiny.CLASSES, hidden=(8,)).double())
    given = heads.problem(model, DATA, range(4))
    found = forget(given, NewtonRemoval() if source == "state" else RETAIN)
    assert found.record.guarantee is Tier.CONDITIONAL
    assert any("not trained on the forget set" in each for each in certificate(found).conditions)
    below = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("2.")}
    assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in below.items())
    distance = float((weights(found.model) - heads.optimum(model, given.retain)).norm())
    assert distance <= certificate(found).sensitivity + certificate(found).sigma * 2 * math.sqrt(36)


def test_a_surrogate_gives_a_conditional_certificate_that_names_its_distance() -> None:
    result = forget(problem(), BY_SURROGATE)
    found = certificate(result)
    assert found.tier is Tier.CONDITIONAL
    assert {constant.name for constant in found.assumed} == {"n", "τ", "training residual"}
    assert "total variation distance is at most 0.05" in found.conditions[0]
    assert constants(result)["mismatch"] <= constants(result)["β"]
    assert result.record.data["surrogate"].examples == len(SURROGATE)
    unclipped = heads.fitted(DATA, model=nn.Linear(tiny.FEATURES, tiny.CLASSES, dtype=torch.double))
    other = forget(heads.problem(unclipped, DATA, [9], state=False, surrogate=SURROGATE), BY_SURROGATE)
    assert "C" in {constant.name for constant in certificate(other).assumed}, "rows of training are not seen"


def test_a_larger_distance_of_the_surrogate_needs_more_noise_until_the_bound_is_trivial() -> None:
    big = {"training_examples": 10**9, "training_residual": 1e-9}
    large = TensorDataset(*(tensor.repeat(400, *[1] * (tensor.ndim - 1)) for tensor in SURROGATE.tensors))
    model = heads.fitted(DATA, l2=1.0)
    given = heads.problem(model, DATA, range(1), state=False, surrogate=large)
    mismatch = [
        constants(forget(given, NewtonRemoval("surrogate", l2=1.0, surrogate_distance=tau, **big)))["mismatch"]
        for tau in (0.0, 0.2, 0.4, 1.0)
    ]
    assert mismatch == sorted(mismatch)
    assert mismatch[2] - mismatch[1] == pytest.approx(0.2 * 0.5, rel=1e-6)
    assert mismatch[0] > 0, "samples are finite"
    assert mismatch[-1] == pytest.approx(0.5), "every curvature lies between 0 and β"


def test_the_mismatch_and_its_chance_of_failing_are_paid_for() -> None:
    """Where the bound by sampling is the one used: a training set so large that it is not trivial."""
    large = TensorDataset(*(tensor.repeat(400, *[1] * (tensor.ndim - 1)) for tensor in SURROGATE.tensors))
    given = heads.problem(heads.fitted(DATA, l2=1.0), DATA, range(1), state=False, surrogate=large)
    guessed = {"training_examples": 10**9, "training_residual": 1e-12, "surrogate_distance": 0.0}
    result = forget(given, NewtonRemoval("surrogate", l2=1.0, **guessed))
    found, named = certificate(result), constants(result)
    assert 0 < named["mismatch"] < 0.2
    assert named["δ'"] == found.delta / 2
    paid = 1e-12 + named["solver residual"] + named["mismatch"] * named["step"] + named["remainder"]
    assert found.residual == pytest.approx(paid, rel=1e-6, abs=0)
    assert found.sensitivity == pytest.approx(paid + 1e-12, rel=1e-6, abs=0)
    assert found.sensitivity < named["shortcut"]
    assert found.sigma == pytest.approx(found.sensitivity * gaussian_sigma(1.0, found.delta / 2), rel=1e-9, abs=0)
    trivial = constants(forget(given, NewtonRemoval("surrogate", l2=1.0, **(guessed | {"surrogate_distance": 1.0}))))
    assert trivial["δ'"] == 0, "a bound that always holds costs nothing"


def test_several_steps_from_retained_data_are_retraining() -> None:
    given = problem(range(30))
    found = [certificate(forget(given, dataclasses.replace(RETAIN, steps=steps))).sensitivity for steps in (1, 2, 4)]
    assert found[1] < 0.1 * found[0]
    assert found[2] < 1e-6


def test_state_and_retained_data_take_the_same_step() -> None:
    given = problem(range(5))
    by_state, by_retain = (forget(given, dataclasses.replace(each, **SILENT)) for each in (NewtonRemoval(), RETAIN))
    gap = float((weights(by_state.model) - weights(by_retain.model)).norm())
    assert gap <= 2 * math.sqrt(52) * (certificate(by_state).sigma + certificate(by_retain).sigma) + 1e-9
    assert certificate(by_retain).sensitivity < certificate(by_state).sensitivity, "measured is tighter than bounded"


def test_saved_and_loaded_with_its_state(tmp_path: Path) -> None:
    given = problem()
    result = forget(given, NewtonRemoval())
    result.save(tmp_path)
    loaded = Unlearned.load(tmp_path, given)
    assert loaded.record == result.record
    assert loaded.state is not None
    assert result.state is not None
    assert loaded.state.digest() == result.state.digest()
    again = Problem(loaded.model, tiny.TASK, split(DATA, indices=[50]).forget, state=loaded.state)
    assert "4 rows deleted since the state was recorded" in certificate(forget(again, NewtonRemoval())).neighbours
    save_state(given.state, tmp_path)
    with pytest.raises(SavedModelError, match=r"does not match record\.json: the state belongs to another run"):
        Unlearned.load(tmp_path, given)
    assert load_state(tmp_path).digest() == given.state.digest()


def test_states_in_records_cannot_be_linked() -> None:
    given = problem()
    first, second = (forget(given, NewtonRemoval()).record.state for _ in range(2))
    assert first is not None
    assert second is not None
    assert len({first.before, first.after, second.before, second.after, given.state.digest()}) == 5


def test_the_page_shows_every_constant_and_its_origin() -> None:
    for method in SOURCES.values():
        result = forget(problem(), method)
        page = render(result.record, None)
        for constant in certificate(result).constants:
            assert constant.name.replace("'", "&#39;") in page
        assert "enforced" in page
        assert "measured" in page
        assert ("assumed" in page) == (result.record.guarantee is Tier.CONDITIONAL)
        assert f"{certificate(result).sigma:.3g}" in page
        for each in (*certificate(result).conditions, *certificate(result).not_covered):
            assert each.split(":")[0].replace("'", "&#39;") in page


def test_the_record_holds_nothing_of_anyone() -> None:
    result = forget(problem(), NewtonRemoval())
    text = json.dumps(result.record.model_dump(mode="json"))
    assert not any(repr(round(value, 4))[:6] in text for value in DATA.tensors[0][:3].flatten().tolist())
    (phase,) = result.record.phases
    assert (phase.name, phase.examples) == ("newton step", 3)


Change = Callable[[Problem], Problem]


def rows(inputs: Tensor, labels: list[int]) -> TensorDataset:
    return TensorDataset(inputs, torch.tensor(labels))


BAD: dict[str, tuple[Method, Change, type[Exception], str]] = {
    "no state": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, state=None), MissingNeedError,
        r"NewtonRemoval needs what was recorded at training: pass `state=`",
    ),
    "no retain set": (
        RETAIN, lambda given: dataclasses.replace(given, retain=None), MissingNeedError, "needs retained training data",
    ),
    "no surrogate": (
        BY_SURROGATE, lambda given: dataclasses.replace(given, surrogate=None), MissingNeedError, "data that stand",
    ),
    "no forget set": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, forget=None, retain=None, classes=(0,)),
        MissingNeedError,
        "the examples to forget",
    ),
    "another model": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, model=heads.fitted(SURROGATE)), StateError,
        "the state belongs to another model",
    ),
    "never in training": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, forget=split(SURROGATE, indices=[0]).forget,
                                                           surrogate=None), UnknownRowError, "were never in training",
    ),
    "not a number": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, forget=rows(torch.full((1, 12), torch.nan), [0])),
        NonFiniteDataError, "NaN or infinity",
    ),
    "label outside": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, forget=rows(torch.zeros(1, 12), [7])), LabelError,
        "a label is 7, outside the 4 classes",
    ),
    "too few features": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, forget=rows(torch.zeros(1, 5), [0])), ShapeError,
        "does not accept inputs",
    ),
    "delta of 1/n": (
        NewtonRemoval(delta=1 / 120), lambda given: given, SettingError, r"must be below 1/n = 0\.00833333 of 120",
    ),
    "delta of 1/n, surrogate": (
        dataclasses.replace(BY_SURROGATE, delta=0.01), lambda given: given, SettingError, "must be below 1/n",
    ),
    "no optimum": (
        dataclasses.replace(RETAIN, l2=0.02), lambda given: given, ConvergenceError, "no optimum of the stated",
    ),
    "no optimum, surrogate": (
        dataclasses.replace(BY_SURROGATE, l2=5.0), lambda given: given, ConvergenceError, "which has none above",
    ),
    "features above the norm": (
        dataclasses.replace(RETAIN, feature_norm=0.5), lambda given: given, ShapeError, r"features of norm 1 .* above",
    ),
    "fewer rows trained on than to be forgotten": (
        dataclasses.replace(BY_SURROGATE, training_examples=3), lambda given: given, DataError, "_examples is 3",
    ),
    "another task": (
        NewtonRemoval(), lambda given: dataclasses.replace(given, task=object()), UnsupportedTaskError,
        "works on Classification",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_leaves_everything_as_it_was(name: str) -> None:
    method, change, error, words = BAD[name]
    given = problem()
    state, model = given.state.digest(), digest_model(given.model)
    with pytest.raises(error, match=words):
        forget(change(given), method)
    assert (given.state.digest(), digest_model(given.model)) == (state, model)


@pytest.mark.parametrize(
    "write",
    [
        lambda state: state.curvature.numpy().__setitem__((0, 1), 7.0),
        lambda state: state.gradient.data.neg_(),
        lambda state: state.rows.present.add_(1),
    ],
)
def test_a_method_that_writes_to_the_state_is_an_error(write: Callable[[Any], Any]) -> None:
    class Scribbler(NewtonRemoval):
        def apply(self, problem: Problem, run: Run) -> Forgotten:
            forgotten = super().apply(problem, run)
            write(problem.state)
            return forgotten

    with pytest.raises(StateError, match="Scribbler wrote to the problem's state; a method must return a new one"):
        forget(problem(), Scribbler())


def test_a_state_of_another_kind() -> None:
    build = lambda: nn.Linear(tiny.FEATURES, tiny.CLASSES, dtype=torch.double)  # noqa: E731
    linear = ClosedForm(build, tiny.TASK, "ridge", {"penalty": 0.5})(DATA, 0)
    state = record(linear, tiny.TASK, DATA, kind="ridge", penalty=0.5)
    with pytest.raises(StateError, match="the state is of kind 'ridge', where 'curvature' is needed"):
        forget(Problem(linear, tiny.TASK, split(DATA, indices=[0]).forget, state=state), NewtonRemoval())


def test_a_second_deletion_of_the_same_row() -> None:
    given = problem()
    result = forget(given, NewtonRemoval())
    with pytest.raises(UnknownRowError, match=r"no longer, among the .* deleted before"):
        forget(Problem(result.model, tiny.TASK, given.forget, state=result.state), NewtonRemoval())


def test_a_state_that_was_used_does_not_fit_the_original() -> None:
    given = problem()
    result = forget(given, NewtonRemoval())
    another = Problem(MODEL, tiny.TASK, split(DATA, indices=[9]).forget, state=result.state)
    with pytest.raises(StateError, match="after a deletion with those that the deletion returned"):
        forget(another, NewtonRemoval())


def test_a_combined_curvature_that_is_not_positive_is_refused() -> None:
    """Of 25 rows 24 are forgotten whose curvature the surrogate's rows, all alike, do not have."""
    alike = TensorDataset(torch.ones(40, tiny.FEATURES, dtype=torch.double), torch.zeros(40, dtype=torch.long))
    given = heads.problem(MODEL, DATA, range(24), state=False, surrogate=alike)
    method = dataclasses.replace(BY_SURROGATE, training_examples=25, l2=heads.L2)
    with pytest.raises(CurvatureError, match=r"not positive definite .*forget fewer"):
        forget(given, method)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"curvature": "guess"}, "curvature must be one of"),
        ({"noise": "none"}, "noise must be one of"),
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"epsilon": -1}, "epsilon must be above 0"),
        ({"epsilon": 10.1}, r"epsilon is 10\.1, above epsilon_limit \(10\)"),
        ({"delta": 1.0}, "delta must be below 1"),
        ({"sigma": 0.0}, "sigma must be above 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"reference_residual": -1e-9}, "reference_residual must be at least 0"),
        ({"surrogate_distance": 1.5}, "surrogate_distance must be at most 1"),
        ({"l2": 0.1}, "curvature='state' does not use l2; leave it out"),
        ({**GUESSED, "curvature": "surrogate", "l2": 0.1, "training_examples": 1}, "must be at least 2, not 1"),
        ({"curvature": "retain"}, "curvature='retain' needs l2 to be given"),
        ({"curvature": "retain", "l2": 0.1, "training_examples": 5}, "does not use training_examples"),
        ({"curvature": "surrogate", "l2": 0.1}, "needs training_examples, training_residual, surrogate_distance"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        NewtonRemoval(**settings)


def by_retain(retain: Any, chosen: list[int], state: Any = None) -> Unlearned:
    return forget(Problem(MODEL, tiny.TASK, split(DATA, indices=chosen).forget, retain, state=state), RETAIN)


def copied(*indices: int) -> TensorDataset:
    kept = torch.ones(len(DATA), dtype=torch.bool)
    kept[list(indices)] = False
    return TensorDataset(*(tensor[kept].clone() for tensor in DATA.tensors))


def test_retained_data_certify_only_where_a_state_shows_that_they_are_the_rest() -> None:
    state = problem().state
    shown = certificate(by_retain(copied(0, 1), [0, 1], state))
    assert (shown.tier, shown.conditions) == (Tier.CERTIFIED, ())
    assert "retraining the head on the retained data given" in shown.reference
    assert "2 rows deleted in this request" in shown.neighbours
    for retain in (copied(0, 1), split(DATA, indices=[0, 1]).retain):
        found = certificate(by_retain(retain, [0, 1]))
        assert found.tier is Tier.CONDITIONAL
        assert found.conditions == ("retain and forget set together are the training set, row for row",)
    with pytest.raises(ConvergenceError, match="no optimum"):
        by_retain(copied(0, 1, 50), [0, 1])
    with pytest.raises(DataError, match=r"have 119 rows, 0 of which the state does not list, and the state lists 120"):
        by_retain(copied(0, 1, 50), [0, 1], state)
    with pytest.raises(DataError, match="have 121 rows"):
        by_retain(copied(1), [0, 1], state)
    with pytest.raises(StateError, match="another model"):
        by_retain(copied(0), [0], forget(problem([0]), NewtonRemoval()).state)


def test_rows_to_be_forgotten_that_are_still_retained_are_refused() -> None:
    with pytest.raises(ForgetSetError, match=r"2 rows of the retain set are also in the forget set.* take them out"):
        by_retain(copied(9), [0, 1, 9])
    doubled = TensorDataset(*(torch.cat([tensor, tensor[:1]]) for tensor in DATA.tensors))
    model, parts = heads.fitted(doubled), split(doubled, indices=[0])
    found = forget(Problem(model, tiny.TASK, parts.forget, parts.retain), RETAIN)
    assert found.record.guarantee is Tier.CONDITIONAL, "two positions of one dataset: a copy that is to stay"


def test_a_second_request_from_retained_data_goes_on_from_the_noise() -> None:
    first = by_retain(split(DATA, indices=[0]).retain, [0])
    parts = split(copied(0), indices=[4])
    second = Problem(first.model, tiny.TASK, parts.forget, parts.retain)
    with pytest.raises(ConvergenceError, match="no optimum"):
        forget(second, RETAIN)
    found = certificate(forget(second, dataclasses.replace(RETAIN, reference_residual=1e-12, steps=6)))
    assert found.sensitivity < 1e-6
    assert "the row deleted in this request" in found.neighbours


def test_a_surrogate_cannot_know_that_the_rows_were_in_training() -> None:
    said = "the forget rows were in training, each as often as it is given, and were not deleted before"
    assert said in certificate(forget(problem(), BY_SURROGATE)).conditions


def test_the_numbers_of_a_certificate_are_not_covered_and_sigma_only_where_it_was_fixed() -> None:
    for name, method in SOURCES.items():
        free = certificate(forget(problem(), method)).not_covered
        fixed = certificate(forget(problem(), dataclasses.replace(method, sigma=1e3))).not_covered
        for listed in (free, fixed):
            assert any(each.startswith("the measured numbers of this certificate (step,") for each in listed), name
        assert any(each.startswith("sigma, which was chosen from the data") for each in free)
        assert not any(each.startswith("sigma") for each in fixed)


def test_noise_of_a_certificate_comes_from_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(size: int) -> bytes:
        asked.append(size)
        return bytes(size)  # the smallest place of all, with the sign that is kept: every draw is the same

    monkeypatch.setattr("expunge.privacy.drawing.os.urandom", counted)
    first, second = (forget(problem(), NewtonRemoval(), seed=seed) for seed in (1, 2))
    assert 8 * weights(MODEL).numel() in asked
    assert digest_model(first.model) == digest_model(second.model)
