"""Which examples make up a step, and fetching them."""

import dataclasses
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

import tiny
from expunge.data import View
from expunge.errors import SettingError
from expunge.training import Term
from expunge.training.batches import Plan, Request, fetch, in_order, stream


def term(length: int, batch_size: int, **settings: Any) -> Term:
    return Term([(torch.zeros(1), 0)] * length, tiny.TASK.losses, batch_size=batch_size, **settings)


def examples_of(requests: list[list[Request]], number: int = 0) -> list[int]:
    return [
        position
        for step in requests
        for request in step
        if request.term == number
        for position in request.positions.tolist()
    ]


@pytest.mark.parametrize(("length", "batch_size"), [(10, 3), (10, 10), (7, 100), (1, 1), (64, 16), (65, 16)])
@pytest.mark.parametrize("micro", [None, 1, 2, 5])
def test_each_epoch_covers_every_example_once(length: int, batch_size: int, micro: int | None) -> None:
    part = term(length, batch_size)
    epochs = 3
    steps = list(Plan([part], epochs * part.steps_per_epoch, seed=1, micro_batch_size=micro).from_step(0))
    assert len(steps) == epochs * part.steps_per_epoch
    orders = [
        examples_of(steps[epoch * part.steps_per_epoch : (epoch + 1) * part.steps_per_epoch]) for epoch in range(epochs)
    ]
    assert all(sorted(order) == list(range(length)) for order in orders)
    if length > 6:
        assert orders[0] != orders[1] != orders[2], "each epoch has an order of its own"
    sizes = [sum(len(request.positions) for request in step) for step in steps]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size
    for step, size in zip(steps, sizes, strict=True):
        pieces = [len(request.positions) for request in step]
        assert all(request.step_examples == size for request in step)
        assert max(pieces) <= (micro or size)
        assert max(pieces) - min(pieces) <= 1, "no remainder that BatchNorm could not train on"


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_step(processes: int) -> None:
    part = term(23, 8)
    shared = [list(Plan([part], 9, seed=1, rank=rank, processes=processes).from_step(0)) for rank in range(processes)]
    alone = list(Plan([part], 9, seed=1).from_step(0))
    for step in range(9):
        together = [position for rank in range(processes) for position in examples_of([shared[rank][step]])]
        assert sorted(together) == sorted(examples_of([alone[step]]))
        assert {request.step_examples for rank in shared for request in rank[step]} == {len(together)}


@pytest.mark.parametrize("start", [1, 4, 11])
def test_resumes_with_the_same_requests(start: int) -> None:
    plan = Plan([term(20, 6), term(7, 3)], 12, seed=3, micro_batch_size=2)
    whole, rest = list(plan.from_step(0))[start:], list(plan.from_step(start))
    assert len(whole) == len(rest) == 12 - start
    for one, other in zip(whole, rest, strict=True):
        for first, second in zip(one, other, strict=True):
            assert (first.term, first.step_examples, first.seed) == (second.term, second.step_examples, second.seed)
            assert torch.equal(first.positions, second.positions)


def test_shorter_terms_start_over_on_their_own() -> None:
    steps = list(Plan([term(20, 5), term(6, 3)], 4, seed=2).from_step(0))
    assert sorted(examples_of(steps, 0)) == list(range(20))
    assert sorted(examples_of(steps, 1)) == sorted([*range(6), *range(6)])


def test_order_depends_on_the_seed() -> None:
    orders = {tuple(examples_of(list(Plan([term(30, 30)], 1, seed).from_step(0)))) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize("form", tiny.FORMS)
def test_fetch_equals_collating_one_by_one(form: str) -> None:
    plain = tiny.images(per_class=3)
    data = tiny.FORMS[form](plain)
    part = Subset(Subset(data, [11, 2, 7, 3, 3, 0, 9]), [6, 1, 1, 4, 0])
    positions = torch.tensor([4, 0, 2, 2])
    batch = fetch(tiny.TASK, [View.of(part)], positions)
    chosen = [9, 2, 2][0:0] + [[9, 2, 2, 3, 11][index] for index in positions.tolist()]
    expected = tiny.TASK.collate([plain[index] for index in chosen])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert batch["labels"].dtype == torch.int64


def test_fetch_over_mixed_parts() -> None:
    plain = tiny.vectors(per_class=2)
    parts = [View.of(form(plain)) for form in tiny.FORMS.values()]
    positions = torch.tensor([31, 0, 9, 8, 17, 25, 1])
    batch = fetch(tiny.TASK, parts, positions)
    by_part = [position for part in range(4) for position in positions.tolist() if position // 8 == part]
    expected = tiny.TASK.collate([plain[position % 8] for position in by_part])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["torch", "numpy", None])
def test_columns_that_are_not_numbers_are_left_alone(kind: str | None) -> None:
    inputs, labels = tiny.vectors(per_class=2).tensors
    columns = {"x": inputs.tolist(), "label": labels.tolist(), "name": [f"n{index}" for index in range(8)]}
    data = hf.Dataset.from_dict(columns).with_format(kind)
    batch = fetch(tiny.TASK, [View.of(data)], torch.tensor([5, 1]))
    assert torch.allclose(batch["inputs"], inputs[[5, 1]])
    assert batch["labels"].tolist() == labels[[5, 1]].tolist()


def test_in_order_keeps_the_order() -> None:
    data = tiny.vectors(per_class=5)
    batches = list(in_order(tiny.TASK, data, 7))
    assert [len(batch["labels"]) for batch in batches] == [7, 7, 6]
    assert torch.equal(torch.cat([batch["inputs"] for batch in batches]), data.tensors[0])


@dataclasses.dataclass
class Augmented:
    """Draws from the global generators whenever an example is read."""

    data: TensorDataset

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        value, label = self.data[index]
        return value + torch.randn(()) + float(np.random.rand()), label


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_fetch_the_same_bits(workers: int) -> None:
    data = Augmented(tiny.vectors(per_class=5))
    plan = Plan([Term(data, tiny.TASK.losses, batch_size=6)], 5, seed=2, micro_batch_size=4)
    alone, helped = (list(stream(plan, tiny.TASK, 1, count)) for count in (0, workers))
    assert len(alone) == len(helped) == 4
    for one, other in zip(alone, helped, strict=True):
        assert len(one) == len(other)
        for (request, batch), (same_request, same_batch) in zip(one, other, strict=True):
            assert torch.equal(request.positions, same_request.positions)
            assert all(torch.equal(batch[name], same_batch[name]) for name in batch)


def test_two_steps_are_augmented_differently() -> None:
    data = Augmented(TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)))
    plan = Plan([Term(data, tiny.TASK.losses, batch_size=4)], 2, seed=2)
    (one,), (other,) = stream(plan, tiny.TASK, 0, 0)
    assert not torch.equal(one[1]["inputs"], other[1]["inputs"])


def test_a_term_needs_data_and_a_batch() -> None:
    with pytest.raises(SettingError, match="batch_size must be a whole number of at least 1, not 0"):
        term(3, 0)
    with pytest.raises(SettingError, match="no examples to train on"):
        term(0, 3)
