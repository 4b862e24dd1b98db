"""l1-sparse, MSG, CT and noise-and-distil against short obvious loops in plain torch."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

import tiny
from expunge import CT, MSG, L1Sparse, NoiseAndDistil, Problem, split, unlearn
from expunge.errors import ModelError, SettingError
from expunge.training import Schedule
from expunge.training.seeds import generator

WHOLE = 1000


def descend(
    model: nn.Module, objective: Callable[[nn.Module, int], Tensor], stepper: torch.optim.Optimizer, rates: list[float]
) -> None:
    model.train()
    for step, rate in enumerate(rates):
        stepper.param_groups[0]["lr"] = rate
        stepper.zero_grad()
        objective(model, step).backward()
        stepper.step()


@pytest.mark.parametrize("plain", [0, 2])
def test_l1_sparse_follows_the_formula(plain: int, mlp_problem: Problem) -> None:
    inputs, labels = tiny.tensors_of(mlp_problem.retain)
    method = L1Sparse(0.01, learning_rate=0.05, epochs=5, plain_epochs=plain, batch_size=WHOLE)
    strengths = [max(0.0, 0.01 * (1 - epoch / (5 - plain))) for epoch in range(5)]
    model = copy.deepcopy(mlp_problem.model)

    def objective(model: nn.Module, step: int) -> Tensor:
        length = sum(weight.abs().sum() for weight in model.parameters())
        return F.cross_entropy(model(inputs), labels) + strengths[step] * length

    descend(model, objective, torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=5e-4), [0.05] * 5)
    result = unlearn(mlp_problem, method, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(mlp_problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-5)


def test_l1_sparse_makes_weights_smaller_than_fine_tuning_does(mlp_problem: Problem) -> None:
    methods = [L1Sparse(penalty, 0.05, batch_size=16) for penalty in (1e-9, 3e-3)]
    models = [unlearn(mlp_problem, method, execution=tiny.QUIET).model for method in methods]
    lengths = [float(tiny.flat(model).norm(1)) for model in models]
    assert lengths[1] < 0.95 * lengths[0]
    with pytest.raises(SettingError, match=r"plain_epochs must be below epochs \(3\), not 3"):
        L1Sparse(epochs=3, plain_epochs=3)


def test_msg_follows_the_formula(trained: Callable[[str], Problem]) -> None:
    problem, seed = trained("small_cnn"), 3
    method = MSG(0.3, learning_rate=0.05, epochs=4, batch_size=WHOLE)
    model = copy.deepcopy(problem.model).eval()
    order = torch.randperm(len(problem.retain), generator=generator(seed, "retain subset"))[: len(problem.forget)]
    kept = Subset(problem.retain.dataset, [problem.retain.indices[index] for index in order.tolist()])
    for dataset, sign in ((kept, 1), (problem.forget, -1)):
        inputs, labels = tiny.tensors_of(dataset)
        (sign * F.cross_entropy(model(inputs), labels)).backward()
    masks: dict[nn.Parameter, Tensor] = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            sizes = weight.grad.abs()
            threshold = sizes.flatten().sort().values[round(0.3 * weight.numel()) - 1]
            masks[weight] = sizes <= threshold
            scale = (2 / (len(weight) * 9)) ** 0.5
            fresh = torch.randn(weight.shape, generator=generator(seed, "reset", name)) * scale
            with torch.no_grad():
                weight.copy_(torch.where(masks[weight], fresh, weight))
    assert len(masks) == 3
    inputs, labels = tiny.tensors_of(problem.retain)
    stepper = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, weight_decay=5e-4)
    model.train()
    for step in range(4):
        stepper.param_groups[0]["lr"] = 0.05 * Schedule.ONE_CYCLE.factor(step / 4)
        stepper.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        for weight, mask in masks.items():
            weight.grad *= torch.where(mask, 1.0, 0.1)
        stepper.step()
    result = unlearn(problem, method, seed=seed, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-4)


def test_ct_follows_the_formula(trained: Callable[[str], Problem]) -> None:
    problem = trained("small_cnn")
    model = copy.deepcopy(problem.model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight.detach().swapaxes(2, 3).clone())
    inputs, labels = tiny.tensors_of(problem.retain)
    rates = [0.05 * Schedule.COSINE.factor(step / 4) for step in range(4)]
    stepper = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, weight_decay=5e-4)
    descend(model, lambda model, _: F.cross_entropy(model(inputs), labels), stepper, rates)
    result = unlearn(problem, CT(0.05, epochs=4, batch_size=WHOLE), execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-4)


@pytest.mark.parametrize("shape", ["all_cnn", "ResNet18", "MobileNetV2", "ViT"])
def test_both_work_wherever_there_are_kernels(shape: str, trained: Callable[[str], Problem]) -> None:
    for method in (MSG(epochs=1, batch_size=32), CT(epochs=1, batch_size=32)):
        problem = dataclasses.replace(trained(shape), classes=())
        result = unlearn(problem, method, execution=tiny.QUIET).model
        assert not torch.equal(tiny.flat(result), tiny.flat(problem.model))
        assert all(bool(torch.isfinite(each).all()) for each in result.state_dict().values())


def test_models_without_kernels_are_refused(mlp_problem: Problem) -> None:
    with pytest.raises(ModelError, match="MSG resets weights of convolutions, of which Sequential has none"):
        unlearn(mlp_problem, MSG(), execution=tiny.QUIET)
    with pytest.raises(ModelError, match="CT turns square convolution kernels of more than one pixel"):
        unlearn(mlp_problem, CT(), execution=tiny.QUIET)


def test_a_kernel_that_two_layers_share_is_turned_once() -> None:
    first, second = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.Conv2d(3, 3, 3, padding=1, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(192, tiny.CLASSES))
    parts = split(tiny.images(per_class=3), classes=[0])
    problem = Problem(model, tiny.TASK, parts.forget, parts.retain)
    result = unlearn(problem, CT(1e-9, epochs=1), execution=tiny.QUIET).model
    assert torch.allclose(result[0].weight, first.weight.transpose(2, 3), atol=1e-6)


@pytest.mark.parametrize("classes", [(0,), ()])
def test_noise_and_distil_follows_the_formula(classes: tuple[int, ...], mlp_problem: Problem) -> None:
    problem, seed = dataclasses.replace(mlp_problem, classes=classes), 2
    inputs, _ = tiny.tensors_of(problem.retain)
    with torch.no_grad():
        logits = problem.model.eval()(inputs)
        stays = [label for label in range(tiny.CLASSES) if label not in classes]
        taught = torch.zeros_like(logits)
        taught[:, stays] = logits[:, stays].softmax(1)
    model = copy.deepcopy(problem.model)
    for name, weight in model.named_parameters():
        noise = torch.zeros_like(weight)
        if weight.ndim > 1:
            bound = (6 / sum(weight.shape)) ** 0.5
            noise.uniform_(-bound, bound, generator=generator(seed, "noise", name))
        with torch.no_grad():
            weight.copy_(0.6 * weight + 0.4 * 0.5 * noise)

    def objective(model: nn.Module, _: int) -> Tensor:
        return -(taught * model(inputs).log_softmax(1)).sum(1).mean()  # KL but for a constant

    rates = [0.01 * Schedule.ONE_CYCLE.factor(step / 4) for step in range(4)]
    descend(model, objective, torch.optim.Adam(model.parameters(), lr=1), rates)
    method = NoiseAndDistil(0.4, 0.5, learning_rate=0.01, epochs=4, batch_size=WHOLE)
    result = unlearn(problem, method, seed=seed, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-4)


def test_noise_and_distil_refuses_more_noise_than_all() -> None:
    with pytest.raises(SettingError, match=r"noise must be at most 1, not 1\.5"):
        NoiseAndDistil(1.5)
