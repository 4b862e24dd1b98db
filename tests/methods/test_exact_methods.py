"""Exact deletion from sums: the model is the one fitted to the rest, and the state forgets too."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import expunge
import tiny
from expunge import ClosedForm, ExactDiscriminant, ExactNaiveBayes, ExactRidge, Method, Problem, Tier, split, unlearn
from expunge.errors import MissingNeedError, StateError, UnknownRowError, UnsupportedTaskError
from expunge.networks import GaussianNaiveBayes
from expunge.tasks import Classification, Regression, Task


@dataclasses.dataclass(frozen=True)
class Case:
    method: Method
    task: Task
    kind: str
    build: Callable[[], nn.Module]
    settings: dict[str, Any]

    def data(self) -> TensorDataset:
        inputs, labels = tiny.vectors(spread=1.5).tensors
        double = inputs.double() + 20
        if isinstance(self.task, Classification):
            return TensorDataset(double, labels)
        return TensorDataset(double, double[:, :3].sum(1) + labels)

    @property
    def recipe(self) -> ClosedForm:
        return ClosedForm(self.build, self.task, self.kind, self.settings)

    def problem(self, forget: range = range(7)) -> Problem:
        data = self.data()
        model, parts = self.recipe(data, 0), split(data, indices=forget)
        state = expunge.record(model, self.task, data, kind=self.kind, **self.settings)
        return Problem(model, self.task, parts.forget, state=state)


WIDTH = tiny.FEATURES
CASES = {
    "ridge": Case(
        ExactRidge(), Regression(1.0), "ridge", lambda: nn.Linear(WIDTH, 1, dtype=torch.double), {"penalty": 0.3}
    ),
    "ridge of classes": Case(
        ExactRidge(), tiny.TASK, "ridge", lambda: nn.Linear(WIDTH, 4, bias=False, dtype=torch.double), {"penalty": 2.0}
    ),
    "naive Bayes": Case(ExactNaiveBayes(), tiny.TASK, "naive-bayes", lambda: GaussianNaiveBayes(WIDTH, 4), {}),
    "discriminant": Case(
        ExactDiscriminant(), tiny.TASK, "lda", lambda: nn.Linear(WIDTH, 4, dtype=torch.double), {"shrinkage": 0.1}
    ),
}

by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def distance(one: nn.Module, other: nn.Module) -> float:
    return float((tiny.flat(one) - tiny.flat(other)).abs().max() / tiny.flat(other).abs().max())


@by_case
def test_the_result_is_a_refit_and_needs_no_retained_data(case: Case) -> None:
    problem = case.problem()
    result = unlearn(problem, case.method, execution=tiny.QUIET)
    retrained = case.recipe(split(case.data(), indices=range(7)).retain, 5)
    assert distance(result.model, retrained) <= 1e-10
    assert distance(problem.model, retrained) > 1e-4, "the forget set mattered"
    assert not result.model.training
    result.state.require_fit(retrained)


@by_case
def test_requests_in_any_order_end_in_the_same_model(case: Case) -> None:
    data = case.data()
    parts = [range(3), range(50, 60), range(20, 21)]
    kept = split(data, indices=[row for part in parts for row in part]).retain
    retrained = case.recipe(kept, 0)
    for order in itertools.permutations(parts):
        problem = case.problem(order[0])
        for part in order:
            problem = dataclasses.replace(problem, forget=split(data, indices=part).forget)
            result = unlearn(problem, case.method, execution=tiny.QUIET)
            problem = dataclasses.replace(problem, model=result.model, state=result.state)
        assert distance(problem.model, retrained) <= 1e-10


@by_case
def test_the_record_and_the_certificate(case: Case, tmp_path: Path) -> None:
    problem = case.problem()
    result = unlearn(problem, case.method, execution=tiny.QUIET)
    certificate = result.record.certificate
    assert result.record.guarantee == certificate.tier == Tier.EXACT
    assert (certificate.epsilon, certificate.delta, certificate.sigma) == (0, 0, 0)
    assert "rows that are left" in certificate.reference
    assert {each.name: each.value for each in certificate.constants} == {"deleted rows": 7, "rows left": 113}
    assert any("before and after" in text and "Bertran" in text for text in certificate.not_covered)
    result.save(tmp_path)
    loaded = expunge.Unlearned.load(tmp_path, problem)
    assert loaded.record == result.record
    assert loaded.state.digest() == result.state.digest()
    assert distance(loaded.model, result.model) == 0


@by_case
def test_refusals_leave_model_and_state_as_they_were(case: Case) -> None:
    problem, data = case.problem(), case.data()
    before = problem.state.digest(), tiny.flat(problem.model).clone()
    result = unlearn(problem, case.method, execution=tiny.QUIET)
    after = dataclasses.replace(problem, model=result.model, state=result.state)
    with pytest.raises(UnknownRowError):
        unlearn(after, case.method, execution=tiny.QUIET)
    with pytest.raises(StateError, match="belongs to another model, or to this one before a deletion"):
        unlearn(dataclasses.replace(problem, state=result.state), case.method, execution=tiny.QUIET)
    strangers = TensorDataset(data.tensors[0][:4] + 1, data.tensors[1][:4])
    with pytest.raises(UnknownRowError):
        unlearn(dataclasses.replace(problem, forget=strangers), case.method, execution=tiny.QUIET)
    with pytest.raises(MissingNeedError, match=r"what was recorded at training: pass `state=`"):
        unlearn(dataclasses.replace(problem, state=None), case.method, execution=tiny.QUIET)
    assert problem.state.digest() == before[0]
    assert torch.equal(tiny.flat(problem.model), before[1])


def test_a_state_of_another_kind_or_another_task_is_refused() -> None:
    ridge, bayes = CASES["ridge of classes"], CASES["naive Bayes"]
    with pytest.raises(StateError, match="of kind 'naive-bayes', where 'ridge' is needed"):
        unlearn(bayes.problem(), ExactRidge(), execution=tiny.QUIET)
    with pytest.raises(UnsupportedTaskError, match="ExactNaiveBayes works on Classification, not on Regression"):
        unlearn(CASES["ridge"].problem(), ExactNaiveBayes(), execution=tiny.QUIET)
    assert ridge.method == ExactRidge()


def test_a_model_in_single_precision_is_the_rounded_refit() -> None:
    case = dataclasses.replace(CASES["ridge"], build=lambda: nn.Linear(WIDTH, 1))
    result = unlearn(case.problem(), case.method, execution=tiny.QUIET)
    retrained = case.recipe(split(case.data(), indices=range(7)).retain, 0)
    assert torch.equal(result.model.weight, retrained.weight)
    assert result.model.weight.dtype == torch.float32


def test_a_whole_class_is_deleted() -> None:
    case = CASES["discriminant"]
    data, problem = case.data(), case.problem()
    parts = split(data, classes=[2])
    problem = dataclasses.replace(problem, forget=parts.forget, classes=(2,))
    result = unlearn(problem, case.method, execution=tiny.QUIET)
    assert distance(result.model, case.recipe(parts.retain, 0)) <= 1e-10
    assert 2 not in tiny.logits(result.model, data).argmax(1).tolist()
