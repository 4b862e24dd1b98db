"""Boundary Shrink and Expand: where examples are sent, and that the head comes back as it was shaped."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from expunge import BoundaryExpand, BoundaryShrink, Method, Problem, Run, split, unlearn
from expunge.errors import ForgetSetError, MissingNeedError
from expunge.methods.boundary_expand import _with_rows

WHOLE = 1000


def neighbours(problem: Problem, bound: float) -> Tensor:
    """argmax over classes that stay of f(x + bound · sign(dCE/dx))."""
    model = copy.deepcopy(problem.model).eval()
    inputs, labels = tiny.tensors_of(problem.forget)
    inputs = inputs.clone().requires_grad_(True)
    F.cross_entropy(model(inputs), labels, reduction="sum").backward()
    logits = model(inputs + bound * inputs.grad.sign()).detach()
    stays = [label for label in range(tiny.CLASSES) if label not in problem.classes]
    return torch.tensor(stays)[logits[:, stays].argmax(1)]


@pytest.mark.parametrize("classes", [(0,), (0, 2)])
def test_shrink_follows_the_formula(classes: tuple[int, ...], mlp_problem: Problem) -> None:
    parts = split(tiny.vectors(), classes=classes)
    problem = dataclasses.replace(mlp_problem, forget=parts.forget, retain=None, classes=classes)
    labels = neighbours(problem, 0.1)
    inputs, true_labels = tiny.tensors_of(problem.forget)
    crossed = problem.model(inputs).argmax(1) != true_labels
    assert not bool(crossed.all()), "where no border is crossed, the nearest class must not be its own"
    assert not any(bool((labels == label).any()) for label in classes)
    model = copy.deepcopy(problem.model)
    stepper = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        stepper.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        stepper.step()
    method = BoundaryShrink(learning_rate=0.05, epochs=4, batch_size=WHOLE)
    result = unlearn(problem, method, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-5)


def test_expand_follows_the_formula(mlp_problem: Problem) -> None:
    inputs, _ = tiny.tensors_of(mlp_problem.forget)
    captured: list[nn.Module] = []

    class Watching(Run):
        def train(self, phase: str, model: nn.Module, *arguments: Any, **options: Any) -> Any:
            captured.append(copy.deepcopy(model))
            return super().train(phase, model, *arguments, **options)

    method = BoundaryExpand(0.05, epochs=4, batch_size=WHOLE)
    result = method.apply(mlp_problem, Watching(tiny.TASK, 0, tiny.QUIET))
    (model,) = captured
    assert model[2].weight.shape == (5, 16)
    assert torch.equal(model[2].weight[:4], mlp_problem.model[2].weight)
    stepper = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        stepper.zero_grad()
        F.cross_entropy(model(inputs), torch.full((len(inputs),), 4)).backward()
        stepper.step()
    assert result[2].weight.shape == (4, 16)
    assert torch.allclose(result[2].weight, model[2].weight[:4], atol=1e-5)
    assert torch.allclose(result[2].bias, model[2].bias[:4], atol=1e-5)
    assert torch.allclose(result[0].weight, model[0].weight, atol=1e-5)
    assert (result[2].weight - mlp_problem.model[2].weight).abs().max() > 1e-2


@pytest.mark.parametrize(
    "head", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, padding=1)]
)
def test_a_head_that_is_widened_and_cut_is_the_same(head: nn.Linear | nn.Conv2d) -> None:
    wide = _with_rows(head, 5)
    inputs = torch.randn(2, 6) if isinstance(head, nn.Linear) else torch.randn(2, 6, 5, 5)
    assert wide(inputs).shape[1] == 5
    assert torch.allclose(wide(inputs)[:, :4], head(inputs), atol=1e-6)
    back = _with_rows(wide, 4)
    assert repr(back) == repr(head)
    assert torch.equal(back(inputs), head(inputs))


@pytest.mark.parametrize("method", [BoundaryShrink(learning_rate=0.01), BoundaryExpand(0.01)], ids=["shrink", "expand"])
def test_they_are_for_whole_classes_and_leave_statistics_alone(
    method: Method, trained: Callable[[str], Problem]
) -> None:
    problem = trained("small_cnn")
    result = unlearn(problem, method, execution=tiny.QUIET).model
    for name, value in problem.model.named_buffers():
        assert torch.equal(value, dict(result.named_buffers())[name]), name
    with pytest.raises(MissingNeedError, match="needs whole classes to forget"):
        unlearn(dataclasses.replace(problem, classes=()), method, execution=tiny.QUIET)


def test_a_model_that_is_its_head_works_too() -> None:
    data = tiny.vectors()
    parts = split(data, classes=[1])
    problem = Problem(nn.Linear(tiny.FEATURES, tiny.CLASSES), tiny.TASK, parts.forget, classes=(1,))
    result = unlearn(problem, BoundaryExpand(0.1), execution=tiny.QUIET).model
    assert isinstance(result, nn.Linear)
    assert result.out_features == tiny.CLASSES


def test_shrinking_all_classes_is_refused(mlp_problem: Problem) -> None:
    problem = Problem(mlp_problem.model, tiny.TASK, tiny.vectors(), classes=(0, 1, 2, 3))
    with pytest.raises(ForgetSetError, match="all are to be forgotten"):
        unlearn(problem, BoundaryShrink(), execution=tiny.QUIET)
