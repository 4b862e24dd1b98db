"""The probes: what features that hold a kind show, and what features without it do not."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from digits_problem import QUIET
from expunge import Classification
from expunge.audit.probe import LINEAR, ONE_SHOT, Probes
from expunge.data import subset
from expunge.training import Run


@pytest.fixture
def blobs() -> TensorDataset:
    """Three kinds around three corners of a square, and noise in other directions."""
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor([[0.0, 0], [6, 0], [0, 6]])
    return TensorDataset(torch.cat([corners[labels] + noise[:, :2], noise[:, 2:]], 1), labels)


class Seen(nn.Module):
    """A head on some of the inputs."""

    def __init__(self, kept: list[int]) -> None:
        super().__init__()
        self.kept = kept
        self.head = nn.Linear(len(kept), 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs[:, self.kept])


def probes(data: TensorDataset, forgotten: torch.Tensor) -> Probes:
    return Probes.prepare(
        Run(Classification(3), 0, QUIET),
        subset(data, forgotten.nonzero().flatten()),
        subset(data, (~forgotten).nonzero().flatten()),
    )


def test_features_that_part_the_kinds_recognise_the_forgotten_one(blobs: TensorDataset):
    whole = probes(blobs, blobs.tensors[1] == 2)

    seeing, blind = whole.recognised(Seen([0, 1, 2])), whole.recognised(Seen([2, 3, 4]))

    assert seeing[LINEAR].mean() > 0.95 > 0.4 > blind[LINEAR].mean()
    assert seeing[ONE_SHOT].mean() > 0.9 > 0.6 > blind[ONE_SHOT].mean()


def test_single_examples_have_a_linear_probe_only(blobs: TensorDataset):
    some = torch.zeros(300, dtype=torch.bool)
    some[::10] = True

    found = probes(blobs, some).recognised(Seen([0, 1, 2]))

    assert list(found) == [LINEAR]
    assert len(found[LINEAR]) == 30
    assert found[LINEAR].mean() > 0.9


def test_one_example_of_one_kind_cannot_be_probed(blobs: TensorDataset):
    only = torch.arange(300) == 2
    single = dataclasses.replace(probes(blobs, only), kept=subset(blobs, torch.arange(5, 300, 3)))

    assert single.recognised(Seen([0, 1])) == {}


def test_a_unit_that_is_dead_on_retained_examples_decides_nothing(blobs: TensorDataset):
    inputs, labels = blobs.tensors
    alive = torch.where(labels == 2, torch.rand(300, generator=torch.Generator().manual_seed(1)) * 10, 0.0)
    data = TensorDataset(torch.cat([inputs, alive[:, None]], 1), labels)

    with_it, without = (probes(data, labels == 2).recognised(Seen(kept)) for kept in ([0, 1, 6], [0, 1]))

    assert with_it[ONE_SHOT].mean() > without[ONE_SHOT].mean() - 0.15
