"""Selective synaptic dampening, with and without labels, against its formula."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, TensorDataset

import tiny
from expunge import LFSSD, SSD, Method, Problem, Run, split, unlearn
from expunge.methods._dampening import dampen
from expunge.training import mean_by_batch


def squared_loss(model: nn.Module, inputs: Tensor, labels: Tensor, size: int) -> list[Tensor]:
    """The mean over batches of the squared gradient of each batch's mean loss; batches of the same size."""
    return _mean(model, inputs, size, lambda part: F.cross_entropy(model(inputs[part]), labels[part]), torch.square)


def absolute_length(model: nn.Module, inputs: Tensor, labels: Tensor, size: int) -> list[Tensor]:
    return _mean(model, inputs, size, lambda part: model(inputs[part]).square().sum(1).mean(), torch.abs)


def _mean(
    model: nn.Module, inputs: Tensor, size: int, value: Callable[[slice], Tensor], reduction: Callable[..., Tensor]
) -> list[Tensor]:
    model = model.eval()
    total = [torch.zeros_like(each) for each in model.parameters()]
    for start in range(0, len(inputs), size):
        gradients = torch.autograd.grad(value(slice(start, start + size)), list(model.parameters()))
        for sums, each in zip(total, gradients, strict=True):
            sums += reduction(each) * size / len(inputs)
    return total


def dampened(model: nn.Module, ours: list[Tensor], alls: list[Tensor], alpha: float, scale: float) -> Tensor:
    """theta_i times min(scale · I_all / I_forget, 1) where I_forget > alpha · I_all, weight by weight."""
    found: list[float] = []
    for weights, mine, all_data in zip(model.parameters(), ours, alls, strict=True):
        for weight, one, other in zip(
            weights.flatten().tolist(), mine.flatten().tolist(), all_data.flatten().tolist(), strict=True
        ):
            found.append(weight * min(scale * other / one, 1) if one > alpha * other else weight)
    return torch.tensor(found)


EVERYTHING: list[tuple[Method, Callable[..., list[Tensor]], int]] = [
    (SSD(1.5, 0.7, estimate="example"), squared_loss, 1),
    (SSD(1.5, 1.0, estimate="example"), squared_loss, 1),
    (LFSSD(1.2, 0.5, batch_size=1), absolute_length, 1),
]


@pytest.mark.parametrize(("method", "importance", "size"), EVERYTHING, ids=["ssd .7", "ssd 1", "lfssd"])
def test_it_follows_the_formula(method: Any, importance: Any, size: int, mlp_problem: Problem) -> None:
    model = copy.deepcopy(mlp_problem.model)
    sets = [tiny.tensors_of(each) for each in (mlp_problem.forget, mlp_problem.retain)]
    everything = [torch.cat(pair) for pair in zip(*sets, strict=True)]
    ours, alls = importance(model, *sets[0], size), importance(model, *everything, size)
    expected = dampened(model, ours, alls, method.selection, method.dampening)
    result = unlearn(mlp_problem, method, execution=tiny.QUIET)
    moved = tiny.flat(model) != expected
    assert 0.02 < float(moved.double().mean()) < 0.98
    assert torch.allclose(tiny.flat(result.model), expected, atol=1e-6)
    share = result.record.phases[-1].measured["selected_share"]
    assert share >= float(moved.double().mean())
    assert [phase.name for phase in result.record.phases] == ["importance-forget", "importance-all"]


def test_all_data_and_not_the_retain_set_alone_are_the_measure(mlp_problem: Problem) -> None:
    method = SSD(1.5, estimate="example")
    model = copy.deepcopy(mlp_problem.model)
    ours, kept = (squared_loss(model, *tiny.tensors_of(each), 1) for each in (mlp_problem.forget, mlp_problem.retain))
    wrong = dampened(model, ours, kept, method.selection, method.dampening)
    result = unlearn(mlp_problem, method, execution=tiny.QUIET).model
    assert not torch.allclose(tiny.flat(result), wrong, atol=1e-3)


@pytest.mark.filterwarnings("ignore:nothing was forgotten")
def test_a_small_forget_set_is_measured_with_batches_of_its_size(mlp_problem: Problem) -> None:
    # Four random examples are like all others. The mean gradient of 4 has a noise that is sixteen times that of 64, so
    # beside batches of 64 they would seem to matter more than all data to nearly every weight.
    shares: list[float] = []
    faulty: list[float] = []
    for seed in range(8):
        order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
        parts = split(tiny.vectors(spread=1.5), indices=order[:4].tolist())
        problem = dataclasses.replace(mlp_problem, forget=parts.forget, retain=parts.retain, classes=())
        record = unlearn(problem, SSD(2.0, batch_size=64), seed=seed, execution=tiny.QUIET).record
        assert record.phases[1].steps == 30
        shares.append(record.phases[-1].measured["selected_share"])
        model, run = copy.deepcopy(problem.model), Run(tiny.TASK, seed, tiny.QUIET)
        sets = ((parts.forget, 4), (tiny.vectors(spread=1.5), 60))
        found = [mean_by_batch(run, "x", model, each, tiny.TASK.losses, torch.square, size) for each, size in sets]
        faulty.append(dampen(model, *found, selection=2.0, dampening=1.0))
    gaps = [fault - share for fault, share in zip(faulty, shares, strict=True)]
    assert tiny.interval(gaps)[0] > 0.05, (shares, faulty)


def test_where_nothing_stands_out_it_says_so(mlp_problem: Problem) -> None:
    # measured by example, nothing can matter more than all / forgotten = 4 times as much
    with pytest.warns(UserWarning, match="nothing was forgotten: no weight matters 4.1 times as much"):
        result = unlearn(mlp_problem, SSD(4.1, estimate="example"), execution=tiny.QUIET)
    assert torch.equal(tiny.flat(result.model), tiny.flat(mlp_problem.model))
    assert result.record.phases[-1].warnings


def test_sets_from_two_datasets_are_measured_alike(mlp_problem: Problem) -> None:
    forget, retain = (TensorDataset(*tiny.tensors_of(each)) for each in (mlp_problem.forget, mlp_problem.retain))
    apart = dataclasses.replace(mlp_problem, forget=forget, retain=retain)
    assert isinstance(ConcatDataset([forget, retain])[0], tuple)
    one, other = (
        unlearn(each, SSD(1.5, estimate="example"), execution=tiny.QUIET).model for each in (apart, mlp_problem)
    )
    assert torch.allclose(tiny.flat(one), tiny.flat(other), atol=1e-6)


def test_labels_are_not_read_by_the_label_free_form(mlp_problem: Problem) -> None:
    inputs, labels = tiny.vectors().tensors
    parts = split(TensorDataset(inputs, labels.flip(0)), indices=torch.nonzero(labels == 0).flatten())
    wrong = dataclasses.replace(mlp_problem, forget=parts.forget, retain=parts.retain, classes=())
    method = LFSSD(1.2, batch_size=8)
    one, other = (unlearn(each, method, execution=tiny.QUIET).model for each in (wrong, mlp_problem))
    assert torch.equal(tiny.flat(one), tiny.flat(other))
