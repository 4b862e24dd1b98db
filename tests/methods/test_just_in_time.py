"""Just-in-time unlearning lowers slopes, step by step, from the forget set alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tiny
from expunge import Classification, JustInTime, Problem, unlearn
from expunge.methods.just_in_time import slopes


def slope_at(model: nn.Module, dataset: TensorDataset, noise: float = 0.1) -> float:
    inputs, _ = tiny.tensors_of(dataset)
    torch.manual_seed(0)
    with torch.no_grad():
        return float(slopes(model, tiny.TASK, inputs, 50, noise).mean())


def test_slope_of_an_orthogonal_map_is_its_scale() -> None:
    basis, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(2.5 * basis)
        found = slopes(model, Classification(4), torch.randn(6, 4), copies=3, noise=0.2)
    assert found.tolist() == pytest.approx([2.5] * 6, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_each_step_starts_from_a_gradient_of_zero(steps: int) -> None:
    # With one feature the slope is the norm of the weights, whatever the noise, so a step takes the learning rate off
    # it. Gradients that add up, as in the public code, would take off 1 + 2 + ... + steps times as much.
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0], [4.0]]))
    forget = TensorDataset(torch.randn(8, 1), torch.zeros(8, dtype=torch.long))
    method = JustInTime(copies=3, learning_rate=0.25, epochs=steps, batch_size=8)
    result = unlearn(Problem(model, Classification(2), forget), method, execution=tiny.QUIET)
    assert float(result.model.weight.detach().norm()) == pytest.approx(5 - 0.25 * steps, rel=1e-4)


def test_slopes_at_the_forget_set_fall() -> None:
    shape = tiny.SHAPES["mlp"]
    data, recipe = shape.data(), tiny.recipe(shape)
    ratios: list[float] = []
    forgotten: list[float] = []
    for seed in range(4):
        problem = tiny.problem(recipe(data, seed=seed), data)
        alone = Problem(problem.model, tiny.TASK, problem.forget)
        method = JustInTime(copies=5, learning_rate=0.1, epochs=20, batch_size=16)
        model = unlearn(alone, method, seed=seed, execution=tiny.QUIET).model
        ratios.append(slope_at(model, problem.forget) / slope_at(problem.model, problem.forget))
        forgotten.append(tiny.accuracy(model, problem.forget))
    assert tiny.interval(ratios)[1] < 0.3, ratios


def test_statistics_of_batchnorm_stay(trained: Callable[[str], Problem]) -> None:
    problem = trained("small_cnn")
    model = unlearn(problem, JustInTime(copies=2), execution=tiny.QUIET).model
    before = {name: value for name, value in problem.model.named_buffers() if "running" in name}
    assert before
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())


def test_a_constant_model_is_left_as_it_is() -> None:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    forget = TensorDataset(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    result = unlearn(Problem(model, Classification(2), forget), JustInTime(), execution=tiny.QUIET)
    assert float(result.model.weight.detach().norm()) == 0
