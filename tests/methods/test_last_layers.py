"""EU-k and CF-k: which layers learn, and that the others stay to the bit."""

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiny
from expunge import CFK, EUK, Method, Problem, Run, unlearn
from expunge.errors import ModelError, SettingError
from expunge.methods._initialise import reinitialise
from expunge.methods._last_layers import last_layers

WHOLE = 1000
BOTH = [EUK(3, epochs=2, batch_size=32), CFK(3, epochs=2, batch_size=32)]


def front_and_back(problem: Problem, count: int) -> tuple[list[str], list[str]]:
    """Names in the state of layers before, and of the last ones."""
    chosen = [name for name, _ in last_layers(problem, Run(tiny.TASK, 0, tiny.QUIET), problem.model, count)]
    names = list(problem.model.state_dict())
    back = [name for name in names if name.rpartition(".")[0] in chosen]
    return [name for name in names if name not in back], back


@pytest.mark.parametrize("method", BOTH, ids=["eu-k", "cf-k"])
@pytest.mark.parametrize("shape", ["small_cnn", "ResNet9", "ResNet18", "ViT"])
def test_earlier_layers_keep_every_bit_and_their_statistics(
    method: Method, shape: str, trained: Callable[[str], Problem]
) -> None:
    problem = trained(shape)
    result = unlearn(problem, method, execution=tiny.QUIET).model
    before, after = problem.model.state_dict(), result.state_dict()
    front, back = front_and_back(problem, 3)
    assert any("running_mean" in name for name in front) or shape == "ViT"
    assert all(torch.equal(before[name], after[name]) for name in front)
    assert all(not torch.equal(before[name], after[name]) for name in back if not name.endswith("key.bias"))
    assert all(parameter.requires_grad for parameter in result.parameters())


def test_the_last_layers_are_told_by_use_and_not_by_name(mlp_problem: Problem) -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, tiny.CLASSES)
            self.norm = nn.LayerNorm(8)
            self.middle = nn.Linear(8, 8)
            self.first = nn.Linear(tiny.FEATURES, 8)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.middle(self.first(inputs).relu())))

    problem = dataclasses.replace(mlp_problem, model=Backwards())
    run = Run(tiny.TASK, 0, tiny.QUIET)
    assert [name for name, _ in last_layers(problem, run, problem.model, 1)] == ["head"]
    assert [name for name, _ in last_layers(problem, run, problem.model, 2)] == ["middle", "norm", "head"]
    with pytest.raises(SettingError, match=r"layers must be below the number .* \(3\), not 3"):
        last_layers(problem, run, problem.model, 3)


@pytest.mark.parametrize("anew", [True, False], ids=["eu-k", "cf-k"])
def test_the_head_is_retrained_from_scratch_or_fine_tuned(anew: bool, mlp_problem: Problem) -> None:
    method: Method = (EUK if anew else CFK)(1, learning_rate=0.1, epochs=3, batch_size=WHOLE, weight_decay=0.01)
    model = copy.deepcopy(mlp_problem.model).train()
    if anew:
        reinitialise(Run(tiny.TASK, 2, tiny.QUIET), [("2", model[2])])
        assert not torch.equal(model[2].weight, mlp_problem.model[2].weight)
    inputs, labels = tiny.tensors_of(mlp_problem.retain)
    stepper = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        stepper.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        stepper.step()
    result = unlearn(mlp_problem, method, seed=2, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(mlp_problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-5)


def test_what_is_drawn_anew_does_not_depend_on_the_original(mlp_problem: Problem) -> None:
    run = Run(tiny.TASK, 2, tiny.QUIET)
    other = tiny.SHAPES["mlp"].build()
    original = copy.deepcopy(mlp_problem.model)
    for model in (other, original):
        reinitialise(run, model.named_modules())
    assert torch.equal(tiny.flat(other), tiny.flat(original))


def test_layers_that_share_a_weight_are_refused(mlp_problem: Problem) -> None:
    first, last = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
    last.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), last, nn.Linear(12, 4))
    problem = dataclasses.replace(mlp_problem, model=model)
    with pytest.raises(ModelError, match="0 shares a weight with one of the last 2 layers"):
        unlearn(problem, CFK(2, epochs=1), execution=tiny.QUIET)


def test_weights_that_cannot_be_drawn_anew_are_refused() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ModelError, match=r"gain \(Loose\) has weights of its own and no `reset_parameters`"):
        reinitialise(Run(tiny.TASK, 0, tiny.QUIET), [("gain", Loose())])
