"""SalUn: which weights are salient, that the others stay to the bit, and which labels are taught."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tiny
from expunge import Problem, SalUn, split, unlearn
from expunge.methods._labels import wrong_labels
from expunge.methods.salun import largest
from expunge.training import Execution
from expunge.training.seeds import generator

WHOLE = 1000


def salient(problem: Problem, share: float) -> torch.Tensor:
    """Whether each weight is among the share with the largest gradient on the forget set, by sorting."""
    model = copy.deepcopy(problem.model).eval()
    inputs, labels = tiny.tensors_of(problem.forget)
    outputs = model(inputs)
    F.cross_entropy(outputs if isinstance(outputs, torch.Tensor) else outputs.logits, labels).backward()
    sizes = torch.cat(
        [
            (torch.zeros_like(each) if each.grad is None else each.grad).abs().flatten()
            for each in model.parameters()
        ]
    )  # fmt: skip
    threshold = sizes.sort(descending=True).values[math.ceil(share * len(sizes)) - 1]
    return sizes >= threshold


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT"])
def test_weights_outside_the_mask_keep_every_bit(shape: str, share: float, trained: Callable[[str], Problem]) -> None:
    problem = trained(shape)
    method = SalUn(share, learning_rate=0.05, epochs=3, batch_size=16, weight_decay=0.1)
    result = unlearn(problem, method, execution=tiny.QUIET).model
    moved = tiny.flat(result) != tiny.flat(problem.model)
    chosen = salient(problem, share)
    assert not bool((moved & ~chosen).any()), "weight decay and momentum must not reach them"
    assert float(moved.double().mean()) > 0.8 * share


def test_it_follows_the_formula(mlp_problem: Problem) -> None:
    # one step a pass: forget set with wrong labels, then retain set, gradients masked, one optimiser
    method = SalUn(0.3, learning_rate=0.05, epochs=3, batch_size=WHOLE, weight_decay=0.0)
    chosen = salient(mlp_problem, 0.3)
    model = copy.deepcopy(mlp_problem.model).train()
    inputs, labels = tiny.tensors_of(mlp_problem.forget)
    wrong = wrong_labels(labels, tiny.CLASSES, generator(4, "wrong labels"))
    masks = chosen.split([each.numel() for each in model.parameters()])
    stepper = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        for seen, taught in ((inputs, wrong), tiny.tensors_of(mlp_problem.retain)):
            stepper.zero_grad()
            F.cross_entropy(model(seen), taught).backward()
            for parameter, mask in zip(model.parameters(), masks, strict=True):
                parameter.grad *= mask.reshape(parameter.shape)
            stepper.step()
    result = unlearn(mlp_problem, method, seed=4, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(mlp_problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-5)


def test_passes_alternate_unless_the_sets_are_mixed(mlp_problem: Problem) -> None:
    turns, mixed = (
        unlearn(mlp_problem, SalUn(epochs=2, batch_size=10, mixed=each), execution=tiny.QUIET).record.phases[1]
        for each in (False, True)
    )
    assert turns.examples == mixed.examples == 2 * 120
    assert turns.steps == mixed.steps == 2 * 12
    assert max(turns.history[:3]) > 2 * max(turns.history[3:12]), "first wrong labels alone, then true ones"


def test_wrong_labels_are_never_the_true_ones() -> None:
    labels = torch.arange(5).repeat(4000)
    drawn = wrong_labels(labels, 5, generator(0, "wrong labels"))
    assert not bool((drawn == labels).any()), "drawn from all classes a fifth would be"
    shares = torch.stack([(drawn[labels == 2] == other).double().mean() for other in (0, 1, 3, 4)])
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_the_largest_are_chosen_over_all_parameters_together() -> None:
    masks = largest({"a": torch.tensor([[3.0, -5.0]]), "b": torch.tensor([0.1, -4.0, 0.2, 0.3])}, 0.5)
    assert masks["a"].tolist() == [[1, 1]]
    assert masks["b"].tolist() == [0, 1, 0, 0]


def test_single_examples_can_be_forgotten(mlp_problem: Problem) -> None:
    parts = split(tiny.vectors(), indices=[3, 10, 50])
    problem = dataclasses.replace(mlp_problem, forget=parts.forget, retain=parts.retain, classes=())
    method = SalUn(learning_rate=0.1, epochs=20, batch_size=16)
    losses = []
    for seed in range(4):
        model = unlearn(problem, method, seed=seed, execution=tiny.QUIET).model
        inputs, labels = tiny.tensors_of(parts.forget)
        with torch.no_grad():
            after, before = (F.cross_entropy(each(inputs), labels) for each in (model, problem.model))
        losses.append(float(after - before))
    assert tiny.interval(losses)[0] > 0


class _Killed(Exception):
    """Stands for a kill."""


def test_a_killed_run_resumes_to_the_same_bits(
    mlp_problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = SalUn(0.3, learning_rate=0.05, epochs=3, batch_size=16, weight_decay=0.1)
    often = Execution(device="cpu", progress=False, checkpoint_seconds=0)
    expected = unlearn(mlp_problem, method, execution=often).record
    outputs, calls = type(mlp_problem.task).outputs, 0

    def dies(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise _Killed
        return outputs(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(mlp_problem.task), "outputs", dies)
        with pytest.raises(_Killed):
            unlearn(mlp_problem, method, execution=often, checkpoint_dir=tmp_path)
    assert (tmp_path / "01-relabel.safetensors").exists()
    resumed = unlearn(mlp_problem, method, execution=often, checkpoint_dir=tmp_path, resume=True).record
    assert resumed.result_digest == expected.result_digest
