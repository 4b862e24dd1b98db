"""Phases whose terms take turns, whose weights learn at different paces, and that hand an optimiser on."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge.errors import SettingError
from expunge.networks import mlp, small_cnn
from expunge.training import (
    Algorithm,
    CheckpointFolder,
    Execution,
    Optimizer,
    Run,
    Term,
    mean_by_batch,
    mean_by_example,
)
from expunge.training.batches import Plan

WHOLE = 1000
FIRST, SECOND = tiny.vectors(per_class=10), tiny.vectors(per_class=6, seed=1)
MOMENTUM = Optimizer(0.1, Algorithm.SGD, momentum=0.9, weight_decay=0.01)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mlp(tiny.FEATURES, tiny.CLASSES, hidden=(10,))


def terms(batch_size: int = WHOLE) -> list[Term]:
    losses = tiny.TASK.losses
    return [
        Term(FIRST, losses, weight=-0.1, batch_size=batch_size),
        Term(SECOND, losses, weight=2.0, batch_size=batch_size),
    ]


def by_hand(turns: list[int], **settings: Any) -> nn.Module:
    """The slow obvious loop: each turn is one step on one whole set."""
    model = network().train()
    stepper = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for number in turns:
        inputs, labels = (FIRST, SECOND)[number].tensors
        stepper.zero_grad()
        ((-0.1, 2.0)[number] * F.cross_entropy(model(inputs), labels)).backward()
        stepper.step()
    return model


def test_terms_take_turns_with_one_optimiser() -> None:
    turns = [0, 1, 0, 1, 1]
    run = Run(tiny.TASK, 0, tiny.QUIET)
    model = run.copy(network())
    record = run.train("turns", model, terms(), MOMENTUM, passes=turns)
    assert torch.allclose(tiny.flat(model), tiny.flat(by_hand(turns)), atol=1e-6)
    assert not torch.allclose(tiny.flat(model), tiny.flat(by_hand([0, 1, 1, 0, 1])), atol=1e-3), "the order counts"
    assert record.examples == 2 * len(FIRST) + 3 * len(SECOND)
    assert [loss < 0 for loss in record.history] == [number == 0 for number in turns]


@pytest.mark.parametrize("start", [0, 3, 7])
def test_each_pass_covers_its_data_once_in_an_order_of_its_own(start: int) -> None:
    parts, passes = terms(batch_size=16), [1, 0, 1]
    steps = [parts[number].steps_per_epoch for number in passes]
    assert steps == [2, 3, 2]
    plan = Plan(parts, sum(steps), seed=4, passes=passes)
    requests = list(plan.from_step(0))
    assert [each[0].term for each in requests] == [1, 1, 0, 0, 0, 1, 1]
    orders = [torch.cat([each[0].positions for each in requests[low:high]]) for low, high in ((0, 2), (2, 5), (5, 7))]
    assert [sorted(order.tolist()) for order in orders] == [[*range(24)], [*range(40)], [*range(24)]]
    assert not torch.equal(orders[0], orders[2])
    for one, other in zip(requests[start:], plan.from_step(start), strict=True):
        assert torch.equal(one[0].positions, other[0].positions)
        assert one[0].seed == other[0].seed


def test_a_pass_over_a_term_that_is_not_there_is_refused() -> None:
    run = Run(tiny.TASK, 0, tiny.QUIET)
    with pytest.raises(SettingError, match="a pass over term 2 of 2; number terms from 0"):
        run.train("turns", run.copy(network()), terms(), MOMENTUM, passes=[0, 2])


def test_an_optimiser_is_carried_over_and_only_where_told() -> None:
    found: dict[bool, nn.Module] = {}
    for carry in (True, False):
        run = Run(tiny.TASK, 0, tiny.QUIET)
        found[carry] = run.copy(network())
        for number, turns in enumerate(([0, 1], [1])):
            run.train(f"part-{number}", found[carry], terms(), MOMENTUM, passes=turns, carry_optimizer=carry)
    expected = tiny.flat(by_hand([0, 1, 1]))
    assert torch.allclose(tiny.flat(found[True]), expected, atol=1e-6)
    assert not torch.allclose(tiny.flat(found[False]), expected, atol=1e-3)


class _Killed(Exception):
    """Stands for a kill between two steps."""


@pytest.mark.parametrize("at", [1, 3, 5])
def test_turns_with_a_carried_optimiser_resume_to_the_same_bits(at: int, tmp_path: Path) -> None:
    often = Execution(device="cpu", progress=False, checkpoint_seconds=0)

    def go(folder: Path, kill: int | None) -> nn.Module:
        run = Run(tiny.TASK, 0, often, CheckpointFolder(folder, "same"))
        model, steps = run.copy(network()), 0

        def watch(_: int) -> None:
            nonlocal steps
            steps += 1
            if steps == kill:
                raise _Killed

        for number in range(2):
            run.train(
                f"part-{number}", model, terms(16), MOMENTUM, passes=[0], carry_optimizer=True, watch=watch
            )  # fmt: skip
        return model

    expected = go(tmp_path / "whole", None)
    with pytest.raises(_Killed):
        go(tmp_path / "killed", at)
    assert torch.equal(tiny.flat(go(tmp_path / "killed", None)), tiny.flat(expected))


def test_weights_learn_at_their_paces() -> None:
    run, start = Run(tiny.TASK, 0, tiny.QUIET), network()
    names = dict(start.named_parameters())
    factors = {name: torch.full_like(weight, 0.25) for name, weight in names.items()}
    model = run.copy(start)
    plain = Optimizer(0.1, Algorithm.SGD)
    run.train("slow", model, [terms()[1]], plain, steps=1, gradient_scale=factors)
    full = Run(tiny.TASK, 0, tiny.QUIET)
    other = full.copy(start)
    full.train("slow", other, [terms()[1]], plain, steps=1)
    moved = tiny.flat(other) - tiny.flat(start)
    assert moved.abs().max() > 1e-3
    assert torch.allclose(tiny.flat(model) - tiny.flat(start), moved / 4, atol=1e-7)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_weights_of_pace_nought_stay_to_the_bit(algorithm: Algorithm) -> None:
    run, start = Run(tiny.TASK, 0, tiny.QUIET), network()
    generator = torch.Generator().manual_seed(3)
    factors = {
        name: (torch.rand(weight.shape, generator=generator) > 0.5).float() for name, weight in start.named_parameters()
    }
    momentum = 0.9 if algorithm is Algorithm.SGD else 0.0
    model = run.copy(start)
    run.train(
        "masked",
        model,
        [terms()[1]],
        Optimizer(0.1, algorithm, momentum=momentum, weight_decay=0.1),
        steps=5,
        gradient_scale=factors,
    )
    for (name, before), (_, after) in zip(start.named_parameters(), model.named_parameters(), strict=True):
        still = factors[name] == 0
        assert torch.equal(before[still], after[still])
        assert bool((before[~still] != after[~still]).any())


def test_factors_of_another_shape_are_refused() -> None:
    run = Run(tiny.TASK, 0, tiny.QUIET)
    for factors in ({"0.weight": torch.ones(3)}, {"absent": torch.ones(3)}):
        with pytest.raises(SettingError, match="gradient_scale has factors of shape"):
            run.train("masked", run.copy(network()), [terms()[1]], MOMENTUM, steps=1, gradient_scale=factors)


def test_a_frozen_normalisation_keeps_its_statistics_and_another_does_not() -> None:
    torch.manual_seed(0)
    start = small_cnn(3, tiny.CLASSES, width=4)
    run = Run(tiny.TASK, 0, tiny.QUIET)
    model = run.copy(start)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    model.get_submodule(layers[0]).requires_grad_(False)
    run.train("train", model, [Term(tiny.images(), tiny.TASK.losses)], Optimizer(0.01), steps=2)
    before, after = start.state_dict(), model.state_dict()
    assert all(torch.equal(before[f"{layers[0]}.{name}"], after[f"{layers[0]}.{name}"]) for name in _STATISTICS)
    assert all(not torch.equal(before[f"{layers[1]}.{name}"], after[f"{layers[1]}.{name}"]) for name in _STATISTICS)


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("micro", [None, 5])
@pytest.mark.parametrize("form", tiny.FORMS)
def test_a_reference_follows_its_examples_through_mixed_batches(form: str, micro: int | None) -> None:
    parts = (tiny.FORMS[form](FIRST), tiny.as_tuples(SECOND))
    inputs = torch.cat([FIRST.tensors[0], SECOND.tensors[0]])
    seen: list[bool] = []

    def objective(model: nn.Module, batch: Any, rows: Tensor) -> Tensor:
        seen.append(torch.equal(batch["inputs"], rows))
        return tiny.TASK.losses(model, batch)

    execution = Execution(device="cpu", progress=False, micro_batch_size=micro)
    run = Run(tiny.TASK, 0, execution)
    term = Term(parts, objective, batch_size=12, reference=inputs)
    run.train("refer", run.copy(network()), [term], MOMENTUM, epochs=2)
    assert len(seen) >= 12
    assert all(seen)


def test_a_reference_of_another_length_is_refused() -> None:
    with pytest.raises(SettingError, match="the reference has 3 rows for 40 examples"):
        Term(FIRST, lambda model, batch, rows: rows, reference=torch.zeros(3))


@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT"])
def test_squared_gradients_equal_a_loop_over_examples(shape: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tiny.SHAPES[shape].build().eval()
    data = torch.utils.data.Subset(tiny.SHAPES[shape].data(), range(9))
    expected = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    mean = copy.deepcopy(expected)
    for example in data:
        model.zero_grad()
        tiny.TASK.losses(model, tiny.TASK.collate([example])).sum().backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                expected[name] += weight.grad.square() / len(data)
                mean[name] += weight.grad / len(data)
    run = Run(tiny.TASK, 0, Execution(device="cpu", progress=False, micro_batch_size=4))
    squared = mean_by_example(run, "squares", model, data, [tiny.TASK.losses])
    plain = mean_by_batch(run, "gradient", model, data, tiny.TASK.losses)
    by_three = mean_by_batch(run, "batches", model, data, tiny.TASK.losses, torch.square, batch_size=3)
    assert all(torch.allclose(by_three[name], squares_of_batches(model, data, 3)[name], atol=1e-6) for name in expected)
    for name in expected:
        assert torch.allclose(squared[name], expected[name], atol=1e-6), name
        assert torch.allclose(plain[name], mean[name], atol=1e-6), name
    assert max(float(each.max()) for each in expected.values()) > 1e-2, "gradients of nought would show nothing"
    squares_of_means = {name: each.square() for name, each in mean.items()}
    assert any(not torch.allclose(squares_of_means[name], expected[name], atol=1e-3) for name in expected)
    assert [(phase.steps, phase.examples, len(phase.history)) for phase in run.phases] == [(3, 9, 3)] * 3


def squares_of_batches(model: nn.Module, data: Any, size: int) -> dict[str, Tensor]:
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for start in range(0, len(data), size):
        model.zero_grad()
        batch = tiny.TASK.collate([data[index] for index in range(start, start + size)])
        tiny.TASK.losses(model, batch).mean().backward()
        for name, weight in model.named_parameters():
            total[name] += 0 if weight.grad is None else weight.grad.square() * size / len(data)
    return total


def test_measuring_leaves_the_model_alone(tmp_path: Path) -> None:
    model = network().train()
    before = tiny.flat(model)
    run = Run(tiny.TASK, 0, tiny.QUIET)
    mean_by_example(run, "squares", model, TensorDataset(*FIRST.tensors), [tiny.TASK.losses])
    assert model.training
    assert torch.equal(tiny.flat(model), before)
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
