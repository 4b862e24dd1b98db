"""Which id an example of a training set has in a gradient log, told by what it says and not by where it stands."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from expunge.data import Example, MapDataset, View
from expunge.errors import DataError, StateError, UnknownRowError
from expunge.storage import update_digest
from expunge.tasks import Task

EXAMPLE_ID = "example_id"
_DELETED = 0


@dataclass(frozen=True)
class ExampleLedger:
    """Keyed 64-bit digests of the examples that a log is of, in the order of their ids.

    The key lies beside them, so whoever has the ledger can test whether an example is in it. Nothing is therefore kept
    by which a deleted one could be told from one that was never there.

    Attributes:
        key: (32,) uint8, drawn anew for each log.
        digests: (examples,) int64; 0 where an example was deleted.
    """

    key: Tensor
    digests: Tensor

    @classmethod
    def of(cls, task: Task, dataset: MapDataset) -> "ExampleLedger":
        """The ledger of a training set: an example's id is its position."""
        key = torch.tensor(list(secrets.token_bytes(32)), dtype=torch.uint8)
        ledger = cls(key, torch.empty(0, dtype=torch.int64))
        return replace(ledger, digests=ledger.digest(task, dataset))

    def digest(self, task: Task, dataset: MapDataset) -> Tensor:
        """Keyed digest of what the task makes of each example on its own: (examples,) int64."""
        key, view = self.key.numpy().tobytes(), View.of(dataset)
        words: list[bytes] = []
        for positions in torch.arange(len(dataset)).split(512):
            for example in view.examples(positions):
                state = hashlib.blake2b(digest_size=8, key=key)
                for leaf in tree_leaves(task.collate([example])):
                    update_digest(state, leaf if isinstance(leaf, Tensor) else repr(leaf).encode())
                words.append(state.digest())
        return torch.from_numpy(np.frombuffer(b"".join(words), dtype="<i8").copy())

    def ids(self, task: Task, dataset: MapDataset) -> list[int]:
        """The ids of these examples; one that occurs several times in training has each of its ids given once.

        Raises:
            UnknownRowError: An example is not among those that the log is of, or was deleted from it before.
        """
        wanted = self.digest(task, dataset)
        places: dict[int, list[int]] = {}
        for number in reversed(torch.isin(self.digests, wanted).nonzero().flatten().tolist()):
            places.setdefault(int(self.digests[number]), []).append(number)
        found: list[int] = []
        unknown = 0
        for each in wanted.tolist():
            if places.get(each):
                found.append(places[each].pop())
            else:
                unknown += 1
        if unknown:
            raise UnknownRowError(
                f"{unknown} of the {len(dataset)} examples are not among the {int((self.digests != _DELETED).sum())} "
                "that the gradient log is of, or occur more often than there; leave out what was deleted before, which "
                "the log does not remember, and pass the others as they were trained on, with the same tokenizer and "
                "settings of the task"
            )
        return found

    def require_order(self, task: Task, dataset: MapDataset) -> None:
        """Raise StateError unless these are the examples that the log is of, in that order."""
        same = len(dataset) == len(self.digests) and torch.equal(self.digest(task, dataset), self.digests)
        if not same:
            raise StateError(
                f"the gradient log is of {len(self.digests)} examples in an order of their own, and these "
                f"{len(dataset)} are others or stand in another order; pass the dataset that the log was made for"
            )

    def without(self, ids: list[int]) -> "ExampleLedger":
        """The ledger after these examples were deleted; some may have been before."""
        digests = self.digests.clone()
        digests[torch.tensor(ids, dtype=torch.int64)] = _DELETED
        return replace(self, digests=digests)

    def tensors(self) -> dict[str, Tensor]:
        """What is to be saved."""
        return {"key": self.key, "digests": self.digests}


@dataclass(frozen=True)
class NumberedDataset:
    """A dataset of mappings whose examples carry their ids; see `GradientLog.numbered`."""

    dataset: MapDataset

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example with its id.

        Raises:
            DataError: The example is no mapping, so that it has no place for an id.
        """
        example: Example = self.dataset[index]
        if not isinstance(example, Mapping):
            raise DataError(
                f"an example is a {type(example).__name__}; a mapping is needed, such as {{'input_ids': ...}}, to "
                "carry its id"
            )
        return {**cast("Mapping[str, Any]", example), EXAMPLE_ID: index}
