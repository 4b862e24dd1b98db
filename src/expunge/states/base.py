"""What every kind of deletion state is."""

import json
import secrets
from functools import cache
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
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
    """SHA-256 over kind, tensors and notes, for a state's own `digest`.

    It is kept with the object and computed again only where the content is another than at that time, which
    `_checksum` tells: it reads every bit as well, in a third of the time.
    """
    words = json.dumps([state.kind, state.notes()], sort_keys=True, allow_nan=False)
    tensors = state.tensors()
    seen = (words, {name: _checksum(tensor) for name, tensor in tensors.items()})
    kept: tuple[Any, str] | None = vars(state).get(_KEPT)
    if kept is None or kept[0] != seen:
        kept = seen, digest_tensors(tensors | {words: torch.empty(0)})
        vars(state)[_KEPT] = kept
    return kept[1]


_KEPT = "_kept_digest"
_BLOCK = 65_536


def _checksum(tensor: Tensor) -> tuple[Any, ...]:
    """Type, shape, and for each block of 32-bit words their product with random weights of 64 bits, modulo 2^64.

    Content that was changed without knowing the weights has the same with a chance of at most 2^-33: a difference of
    32-bit words is no multiple of 2^32 (multilinear hashing; Carter and Wegman, "Universal classes of hash functions",
    1979).
    """
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    whole = len(content) - len(content) % 4
    words, weights = np.frombuffer(content[:whole].data, dtype=np.uint32), _weights()
    blocks = (words[start : start + _BLOCK] for start in range(0, len(words), _BLOCK))
    products = [int(np.dot(block, weights[: len(block)])) for block in blocks]
    return tensor.dtype, tuple(tensor.shape), products, content[whole:].tobytes()


@cache
def _weights() -> NDArray[np.uint64]:
    """Drawn anew for each process: (words of a block,)."""
    return np.frombuffer(secrets.token_bytes(8 * _BLOCK), dtype=np.uint64)
