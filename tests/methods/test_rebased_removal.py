"""Requests one after another from a state that moves with its model: the bound holds, and says something."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import heads
import tiny
from expunge import (
    DeletionBudget,
    NewtonRemoval,
    Origin,
    Problem,
    Unlearned,
    load_state,
    record,
    save_state,
    split,
    unlearn,
)
from expunge.errors import CurvatureError, SettingError
from expunge.methods._newton import Removal, by_state
from expunge.networks import ClippedFeatures
from expunge.states import HeadLoss, HeadRows, fit_head, head_rows
from expunge.states.head import head_of, head_weights, ledger_rows, set_head_weights
from expunge.training import Run

DATA = heads.data()
MODEL = heads.fitted(DATA)
SILENT: dict[str, Any] = {"epsilon": 1e6, "delta": 1e-3, "epsilon_limit": 1e6, "rebase": True}
"""Rebase, with so little privacy that the noise is far below the bound."""


def remove(model: nn.Module, state: Any, data: TensorDataset, chosen: list[int], *, rebase: bool) -> Removal:
    problem = Problem(model, tiny.TASK, split(data, indices=chosen).forget, state=state)
    return by_state(problem, Run(tiny.TASK, execution=tiny.QUIET), None, rebase=rebase)


def gradient_norm(held: HeadRows, kept: torch.Tensor, removal: Removal, l2: float) -> float:
    """Of the objective over the rows that are left, computed with all of them."""
    rows = HeadRows(held.features[kept], held.labels[kept], held.classes, held.bias, held.loss)
    return float((rows.gradient_sum(removal.weights) / len(rows) + l2 * removal.weights).norm())


def require_true(state: Any, held: HeadRows, kept: torch.Tensor, recorded: torch.Tensor, l2: float) -> None:
    """Each size that the state keeps bounds what it stands for, computed with all rows and the recorded weights."""
    rows = HeadRows(held.features[kept], held.labels[kept], held.classes, held.bias, held.loss)
    curvature, way = rows.curvature_sum(recorded), state.weights - recorded
    along = rows.product_sum(rows.probabilities(recorded), way)
    missed = rows.gradient_sum(state.weights) - state.gradient
    allowed = 1 + 1e-9
    assert float(way.norm()) <= state.travelled.moved * allowed
    assert math.sqrt(float((way * along).sum())) <= state.travelled.spread * allowed + 1e-12
    assert float(missed.norm()) / len(rows) <= state.travelled.carried * allowed + 1e-12
    assert (
        float(torch.linalg.matrix_norm(state.curvature - curvature, 2).max()) <= state.travelled.stray * allowed + 1e-12
    )


def fitted(rows: int, norm: float, l2: float, loss: HeadLoss, seed: int) -> tuple[nn.Module, TensorDataset]:
    """Rows of which some are long and some labels wrong, and a head at its optimum over them."""
    inputs, labels = heads.data(rows // tiny.CLASSES, seed=seed).tensors
    generator = torch.Generator().manual_seed(seed)
    labels = torch.where(torch.rand(len(labels), generator=generator) < 0.1, (labels + 1) % tiny.CLASSES, labels)
    data = TensorDataset(inputs * torch.rand(len(inputs), 1, generator=generator, dtype=torch.double) * 3, labels)
    head = nn.Linear(tiny.FEATURES + 1, tiny.CLASSES, bias=False, dtype=torch.double)
    model = nn.Sequential(ClippedFeatures(norm), head)
    set_head_weights(head, fit_head(head_rows(model, tiny.TASK, data, loss), l2, tolerance=1e-11))
    return model.eval(), data


def streams(held: HeadRows, weights: torch.Tensor, random: int) -> Iterator[list[list[int]]]:
    """Requests that pull hardest (largest gradients, one class, one direction), and random ones of several sizes."""
    pull = (held.probabilities(weights) - nn.functional.one_hot(held.labels, tiny.CLASSES)).norm(dim=1)
    orders = [pull.argsort(descending=True), (held.labels == 0).double().argsort(descending=True)]
    orders += [held.features[:, axis].argsort(descending=sign) for axis in (0, 5) for sign in (False, True)]
    generator = torch.Generator().manual_seed(len(held))
    orders += [torch.randperm(len(held), generator=generator) for _ in range(random)]
    for order, size in zip(orders, itertools.cycle((1, 2, 4)), strict=False):
        yield [part.tolist() for part in order[: 6 * size].split(size)]


@pytest.mark.parametrize("loss", HeadLoss)
@pytest.mark.parametrize("norm", [0.5, 3.0])
@pytest.mark.parametrize("l2", [1e-3, 1e-1])
@pytest.mark.parametrize("rows", [40, 200])
def test_the_gradient_left_never_exceeds_the_bound(loss: HeadLoss, norm: float, l2: float, rows: int) -> None:
    """In every stream some requests rebase the state and some do not, by chance."""
    model, data = fitted(rows, norm, l2, loss, seed=rows)
    recorded = record(model, tiny.TASK, data, l2=l2, loss=loss, feature_norm=norm)
    held, weights = head_rows(model, tiny.TASK, data, loss), head_weights(head_of(model, tiny.TASK))
    chance, count = torch.Generator().manual_seed(0), 0
    for requests in streams(held, weights, 9):
        state, kept = recorded, torch.ones(len(data), dtype=torch.bool)
        always = bool(torch.rand(1, generator=chance) < 0.5)
        for request in requests:
            kept[request] = False
            rebase = always or bool(torch.rand(1, generator=chance) < 0.5)
            try:
                removal = remove(model, state, data, request, rebase=rebase)
            except CurvatureError:
                gone = split(data, indices=request).forget
                left = state.without(head_rows(model, tiny.TASK, gone, loss), *ledger_rows(tiny.TASK, gone))
                assert left.travelled.stray / len(left.rows) >= l2, "otherwise the system is positive definite"
                break
            assert gradient_norm(held, kept, removal, l2) <= removal.bound.residual * (1 + 1e-9) + 1e-14
            state, count = removal.state, count + 1
            require_true(state, held, kept, weights, l2)
    assert count == 15 * 6 or (rows == 40 and count > 40), "too few rows are left, and it says so"


def test_the_bound_says_something() -> None:
    """After ten requests of 1,000 rows: well below the gradient of doing nothing, above that of weights that stay."""
    data = heads.data(250)
    model, l2, kept = heads.fitted(data, l2=0.03), 0.03, torch.ones(len(data), dtype=torch.bool)
    states: dict[bool, Any] = {rebase: record(model, tiny.TASK, data, l2=l2) for rebase in (False, True)}
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(2))[:10].tolist()
    bounds = {False: math.nan, True: math.nan}
    for index, rebase in itertools.product(order, states):
        removal = remove(model, states[rebase], data, [index], rebase=rebase)
        states[rebase], bounds[rebase] = removal.state, removal.bound.residual
    kept[order] = False
    still = Removal(head_weights(head_of(model, tiny.TASK)), removal.bound, 0, 0, [])
    nothing = gradient_norm(head_rows(model, tiny.TASK, data, HeadLoss.SOFTMAX), kept, still, l2)
    assert bounds[False] < bounds[True] < 0.2 * nothing


def test_the_first_request_is_bounded_as_if_the_weights_stayed() -> None:
    state = record(MODEL, tiny.TASK, DATA, l2=heads.L2)
    for chosen in ([0], [5, 17, 80], list(range(30))):
        stays, moves = (remove(MODEL, state, DATA, chosen, rebase=rebase) for rebase in (False, True))
        assert moves.bound == stays.bound
        assert moves.constants == stays.constants
        assert torch.equal(moves.weights, stays.weights)


def test_a_stream_of_requests_ends_within_its_bound_of_retraining() -> None:
    model, state, kept = MODEL, record(MODEL, tiny.TASK, DATA, l2=heads.L2), torch.ones(len(DATA), dtype=torch.bool)
    for index in (3, 40, 77, 110, 9):
        result = forget(model, state, [index])
        model, state, kept[index] = result.model, result.state, False
        rest = TensorDataset(*(tensor[kept] for tensor in DATA.tensors))
        certificate = result.record.certificate
        assert certificate is not None
        distance = float((head_weights(head_of(model, tiny.TASK)) - heads.optimum(model, rest)).norm())
        assert distance <= certificate.sensitivity + certificate.sigma * 2 * math.sqrt(52)
        assert certificate.sigma * 2 * math.sqrt(52) < 0.1 * certificate.sensitivity, "the noise hides no violation"
    assert "5 rows deleted since the state was recorded" in certificate.neighbours


def test_what_rebasing_adds_is_named_from_the_second_request_on() -> None:
    first = forget(MODEL, record(MODEL, tiny.TASK, DATA, l2=heads.L2), [3])
    second = forget(first.model, first.state, [4])
    added = {"carried gradient", "moved", "spread", "drift"}
    assert not added & set(constants(first))
    assert added <= set(constants(second))
    assert all(constants(second)[name].value > 0 for name in added)
    assert all(constants(second)[name].origin is Origin.MEASURED for name in added)
    known = {name: constant.value for name, constant in constants(second).items()}
    residual = known["carried gradient"] + known["drift"] + known["remainder"] + known["solver residual"]
    certificate = second.record.certificate
    assert certificate is not None
    assert certificate.residual == pytest.approx(residual, rel=1e-12)


def test_requests_between_two_rebasings_count_as_one() -> None:
    """What makes the bound grow is how often the state was rebased, and not how often it was asked."""
    bounds = {}
    for often in (1, 3, 9):
        state = record(MODEL, tiny.TASK, DATA, l2=heads.L2)
        for index in range(9):
            removal = remove(MODEL, state, DATA, [index], rebase=index % (9 // often) == 9 // often - 1)
            state = removal.state
        bounds[often] = removal.bound.residual
    at_once = remove(MODEL, record(MODEL, tiny.TASK, DATA, l2=heads.L2), DATA, list(range(9)), rebase=True)
    assert bounds[1] == pytest.approx(at_once.bound.residual, rel=1e-9)
    assert bounds[1] < bounds[3] < bounds[9]


def test_a_budget_lasts_for_both_and_longer_where_the_weights_stay() -> None:
    spent = {}
    for rebase in (False, True):
        method = NewtonRemoval(sigma=40.0, rebase=rebase)
        budget = DeletionBudget(sigma=40.0, epsilon=1.0, delta=1 / len(DATA) ** 2)
        model, state = MODEL, record(MODEL, tiny.TASK, DATA, l2=heads.L2)
        for index in range(4):
            done = forget(model, state, [index], method)
            assert done.record.certificate is not None
            budget = budget.settle(done.record.certificate.sensitivity)
            model, state = done.model, done.state
        spent[rebase] = list(budget.releases)
        assert spent[rebase] == sorted(spent[rebase])
    assert spent[True][0] == spent[False][0]
    assert spent[True][-1] > spent[False][-1]


def test_the_certificate_says_which_state_it_leaves() -> None:
    state = record(MODEL, tiny.TASK, DATA, l2=heads.L2)
    said = {}
    for rebase in (False, True):
        certificate = forget(MODEL, state, [3], NewtonRemoval(rebase=rebase)).record.certificate
        assert certificate is not None
        (said[rebase],) = (each for each in certificate.not_covered if "holds the deletion state" in each)
    assert "before or after the request: it returns the row of a single deletion exactly" in said[False]
    assert (
        "from before the request (destroy it), or the one after it together with all rows that are left" in said[True]
    )


def test_a_rebased_state_goes_on_after_it_was_saved(tmp_path: Any) -> None:
    first = forget(MODEL, record(MODEL, tiny.TASK, DATA, l2=heads.L2), [3])
    save_state(first.state, tmp_path)
    loaded = load_state(tmp_path)
    assert loaded.digest() == first.state.digest()
    known, again = (constants(forget(first.model, state, [4])) for state in (first.state, loaded))
    assert known == again


def test_rebase_is_yes_or_no() -> None:
    with pytest.raises(SettingError, match="rebase must be one of True, False, not 'often'"):
        NewtonRemoval(rebase="often")  # type: ignore[arg-type]


def forget(model: nn.Module, state: Any, chosen: list[int], method: NewtonRemoval | None = None) -> Unlearned:
    problem = Problem(model, tiny.TASK, split(DATA, indices=chosen).forget, state=state)
    return unlearn(problem, method or NewtonRemoval(**SILENT), execution=tiny.QUIET)


def constants(result: Unlearned) -> dict[str, Any]:
    assert result.record.certificate is not None
    return {constant.name: constant for constant in result.record.certificate.constants}
