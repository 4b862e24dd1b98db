"""Heads trained to their optimum, for tests of guarantees."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge import Problem, record, split
from expunge.data import MapDataset
from expunge.networks import ClippedFeatures
from expunge.states import HeadLoss, fit_head, head_rows
from expunge.states.head import head_of, set_head_weights

L2 = 0.01


def clipped(inputs: int = tiny.FEATURES, classes: int = tiny.CLASSES, *, double: bool = True) -> nn.Module:
    """A head on features clipped to norm 1; in double precision, so that its optimum can be one to the last digit."""
    head = nn.Linear(inputs + 1, classes, bias=False, dtype=torch.double if double else torch.float)
    return nn.Sequential(ClippedFeatures(1.0), head)


def data(per_class: int = 30, *, seed: int = 0, spread: float = 1.5) -> TensorDataset:
    inputs, labels = tiny.vectors(per_class, spread=spread, seed=seed).tensors
    return TensorDataset(inputs.double(), labels)


def optimum(model: nn.Module, dataset: MapDataset, l2: float = L2, loss: HeadLoss = HeadLoss.SOFTMAX) -> Tensor:
    """Weights of the head at the optimum over a dataset."""
    return fit_head(head_rows(model, tiny.TASK, dataset, loss), l2, tolerance=1e-13)


def fitted(
    dataset: MapDataset, l2: float = L2, loss: HeadLoss = HeadLoss.SOFTMAX, model: nn.Module | None = None
) -> nn.Module:
    """A model whose head is at its optimum."""
    model = clipped() if model is None else model
    set_head_weights(head_of(model, tiny.TASK), optimum(model, dataset, l2, loss))
    return model.eval()


def problem(
    model: nn.Module,
    dataset: MapDataset,
    forget: Sequence[int],
    *,
    state: bool = True,
    surrogate: MapDataset | None = None,
    **settings: Any,
) -> Problem:
    """Forget some rows, with a state recorded on all."""
    parts = split(dataset, indices=forget)
    held = record(model, tiny.TASK, dataset, **{"l2": L2, **settings}) if state else None
    return Problem(model, tiny.TASK, parts.forget, parts.retain, state=held, surrogate=surrogate)
