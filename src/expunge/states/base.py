"""What every kind of deletion state is."""

import json
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.problem import DeletionState
from expunge.storage import digest_tensors
from expunge.tasks import Task


class StateKind(DeletionState, Protocol):
    """A class of states: how one is recorded, and restored from what was saved."""

    @classmethod
    def record(cls, model: nn.Module, task: Task, dataset: MapDataset, **settings: Any) -> Self:
        """Record a state of `model` as it was trained on `dataset`."""
        ...

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], notes: dict[str, Any]) -> Self:
        """Make a state of what `tensors` and `notes` gave."""
        ...


def digest_state(state: DeletionState) -> str:
    """SHA-256 over kind, tensors and notes, for a state's own `digest`."""
    words = json.dumps([state.kind, state.notes()], sort_keys=True, allow_nan=False)
    return digest_tensors(state.tensors() | {words: torch.empty(0)})
