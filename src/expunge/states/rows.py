"""Which rows a deletion state still holds, told without keeping any."""

import hashlib
import secrets
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from expunge.data import MapDataset
from expunge.errors import UnknownRowError
from expunge.tasks import Task
from expunge.training.batches import in_order


@dataclass(frozen=True)
class RowLedger:
    """Keyed 64-bit digests of the rows of a training set, a multiset.

    Without the key a digest says nothing. The key lies beside the digests, so whoever holds the state can test whether
    a row that they know is held: a state belongs to the owner alone. Nothing is therefore kept by which a deleted row
    could be told from one that was never there. A row that never was in training passes for one with probability
    (rows / 2^64).

    Attributes:
        key: (32,) uint8, drawn anew for each recorded state.
        present: (rows,) int64, sorted digests of the rows that are held.
    """

    key: Tensor
    present: Tensor

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor) -> "RowLedger":
        """The ledger of these rows under a fresh key; see `digests` for the shapes."""
        key = torch.tensor(list(secrets.token_bytes(32)), dtype=torch.uint8)
        ledger = cls(key, torch.empty(0, dtype=torch.int64))
        return replace(ledger, present=ledger.digests(inputs, labels).sort().values)

    def __len__(self) -> int:
        """Number of rows that are held."""
        return len(self.present)

    def __bool__(self) -> bool:
        """A ledger is there even where it holds no row."""
        return True

    def digests(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Keyed digest of each row: (rows,) int64.

        Args:
            inputs: (rows, ...), as the task reads them; equal numbers give equal digests whatever their precision.
            labels: (rows,) or (rows, targets).
        """
        table = torch.cat([inputs.double().flatten(1), labels.double().reshape(len(inputs), -1)], dim=1)
        rows: NDArray[np.float64] = table.contiguous().numpy() + 0.0  # -0.0 equals 0.0, and so must their digests
        key = self.key.numpy().tobytes()
        words = [hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows]
        return torch.from_numpy(np.frombuffer(b"".join(words), dtype="<i8").copy())

    def remove(self, inputs: Tensor, labels: Tensor) -> "RowLedger":
        """The ledger without these rows; one that occurs several times is removed as often as it is given.

        Raises:
            UnknownRowError: A row was never recorded, or was deleted before.
        """
        wanted, counts = self.digests(inputs, labels).unique(return_counts=True)
        first = torch.searchsorted(self.present, wanted)
        last = torch.searchsorted(self.present, wanted, right=True)
        missing = counts > last - first
        if bool(missing.any()):
            rows, asked = int((counts - (last - first)).clamp(min=0).sum()), int(counts.sum())
            raise UnknownRowError(
                f"{rows} of the {asked} forget rows are not, or no longer, among the {len(self.present)} rows of this "
                "state: they were never in training, were deleted before, which a state does not remember, or more "
                "copies of a row are to be forgotten than there are; leave those out, and pass the others as they were "
                "recorded, with the same preprocessing and labels"
            )
        kept = torch.ones(len(self.present), dtype=torch.bool)
        for start, count in zip(first.tolist(), counts.tolist(), strict=True):
            kept[start : start + count] = False
        return RowLedger(self.key, self.present[kept])

    def tensors(self) -> dict[str, Tensor]:
        """What is to be saved, under names that start with `rows.`."""
        return {"rows.key": self.key, "rows.present": self.present}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor]) -> "RowLedger":
        """From what `tensors` gave; what earlier versions kept of deleted rows is let go."""
        return cls(tensors["rows.key"], tensors["rows.present"])


def row_fields(task: Task, dataset: MapDataset) -> tuple[Tensor, Tensor]:
    """The first tensor of each example's batch and all others, as the task reads them, whatever form the data have."""
    batches = [
        [leaf.double().reshape(len(leaf), -1) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        for batch in in_order(task, dataset, _BATCH)
    ]
    first = torch.cat([leaves[0] for leaves in batches])
    return first, torch.cat([torch.cat([leaves[0][:, :0], *leaves[1:]], dim=1) for leaves in batches])


_BATCH = 512
