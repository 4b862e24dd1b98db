"""Fisher forgetting against its formula, computed one example and one class at a time."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

import tiny
from expunge import FisherForgetting, Problem, unlearn
from expunge.networks import mlp
from expunge.training.seeds import generator


def information(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The mean over examples of the sum over classes of p(y|x) (d log p(y|x))^2."""
    model = model.eval()
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for example in inputs:
        for label in range(tiny.CLASSES):
            log_p = model(example[None]).log_softmax(1)[0, label]
            gradients = torch.autograd.grad(log_p, list(model.parameters()))
            for sums, each in zip(total.values(), gradients, strict=True):
                sums += log_p.exp().detach() * each.square() / len(inputs)
    return total


def expected(problem: Problem, method: FisherForgetting, head: str, seed: int) -> dict[str, Tensor]:
    model = copy.deepcopy(problem.model)
    inputs, _ = tiny.tensors_of(problem.retain)
    found: dict[str, Tensor] = {}
    for name, fisher in information(model, inputs).items():
        in_head = name.startswith(f"{head}.")
        variance = method.noise * (1 / (fisher + 1e-8)).clamp(max=method.most / (10 if in_head else 1))
        if variance.ndim > 1:
            variance = variance.mean(1, keepdim=True).expand_as(fisher).clone()
        mean = dict(model.named_parameters())[name].detach().clone()
        if in_head:
            mean[list(problem.classes)] = 0
            variance[list(problem.classes)] = 1e-4
        if in_head or variance.ndim == 1:
            variance *= 10
        drawn = torch.randn(mean.shape, generator=generator(seed, "noise", name))
        found[name] = mean + variance.sqrt() * drawn
    return found


@pytest.mark.parametrize("classes", [(0,), ()])
def test_it_follows_the_formula(classes: tuple[int, ...], mlp_problem: Problem) -> None:
    problem, method = dataclasses.replace(mlp_problem, classes=classes), FisherForgetting(1e-4)
    result = unlearn(problem, method, seed=3, execution=tiny.QUIET)
    wanted = expected(problem, method, "2", 3)
    for name, weight in result.model.named_parameters():
        assert torch.allclose(weight, wanted[name], atol=2e-5), name
    assert (tiny.flat(result.model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert [phase.name for phase in result.record.phases] == ["information"]


def test_the_head_is_not_told_by_its_number_of_rows(mlp_problem: Problem) -> None:
    # a hidden layer as wide as there are classes; public code would set its row to nought as well
    model = mlp(tiny.FEATURES, tiny.CLASSES, hidden=(tiny.CLASSES,))
    problem = dataclasses.replace(mlp_problem, model=model)
    wanted = expected(problem, FisherForgetting(), "2", 0)
    result = unlearn(problem, FisherForgetting(), execution=tiny.QUIET).model
    for name, weight in result.named_parameters():
        assert torch.allclose(weight, wanted[name], atol=1e-4), name
    assert float(result[0].weight[0].detach().abs().max()) > 0.1


def test_weights_that_matter_less_get_more_noise(mlp_problem: Problem) -> None:
    problem = dataclasses.replace(mlp_problem, classes=())
    inputs, _ = tiny.tensors_of(problem.retain)
    fisher = information(copy.deepcopy(problem.model), inputs)["0.weight"].mean(1)
    before = problem.model[0].weight
    models = [unlearn(problem, FisherForgetting(), seed=seed, execution=tiny.QUIET).model for seed in range(6)]
    sizes = [(model[0].weight - before).detach().square().mean(1) for model in models]
    noise = torch.stack(sizes).mean(0)
    least, most = fisher.argsort()[:4], fisher.argsort()[-4:]
    assert float(noise[least].mean()) > 2 * float(noise[most].mean())
