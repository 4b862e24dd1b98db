"""The rows that an estimator was fitted to, for as long as it keeps them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import positions
from expunge.errors import AlreadyForgottenError, LabelError, MissingNeedError, SettingError
from expunge.states import RowLedger

Indices = Sequence[int] | NDArray[Any]


@dataclass(frozen=True)
class RowStore:
    """Rows by their position in the data that were given to `fit`; positions stay when other rows go.

    Args:
        inputs: (rows, features) float64.
        targets: (rows, columns) float64.
        digests: (rows,) int64, as the estimator's ledger gives them.
        positions: (rows,) int64, rising.
        fitted: Number of rows given to `fit`.
    """

    inputs: Tensor
    targets: Tensor
    digests: Tensor
    positions: Tensor
    fitted: int

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, ledger: RowLedger) -> "RowStore":
        """All rows of a fit."""
        return cls(inputs, targets, ledger.digests(inputs, targets), torch.arange(len(inputs)), len(inputs))

    def places(self, indices: Indices) -> Tensor:
        """Where in this store the rows with these positions lie.

        Raises:
            ForgetSetError: An index is out of range.
            AlreadyForgottenError: A row is no longer there.
        """
        wanted = positions(indices, self.fitted)
        if len(wanted) == 0:
            raise SettingError("indices is empty; name the rows to forget by their position in the data given to fit")
        held = torch.isin(wanted, self.positions)
        if not bool(held.all()):
            raise AlreadyForgottenError(
                f"{int((~held).sum())} of the {len(wanted)} rows to forget were deleted before; leave them out"
            )
        return torch.searchsorted(self.positions, wanted)

    def places_of(self, digests: Tensor) -> Tensor:
        """Where the rows with these digests lie, the first of equal rows first; they are known to be there."""
        wanted = Counter(digests.tolist())
        found: list[int] = []
        for place in torch.isin(self.digests, digests).nonzero()[:, 0].tolist():
            digest = int(self.digests[place])
            if wanted[digest] > 0:
                wanted[digest] -= 1
                found.append(place)
        return torch.tensor(found, dtype=torch.long)

    def without(self, places: Tensor) -> "RowStore":
        """The rows but those at these places."""
        stays = torch.ones(len(self.positions), dtype=torch.bool)
        stays[places] = False
        return RowStore(
            self.inputs[stays], self.targets[stays], self.digests[stays], self.positions[stays], self.fitted
        )


def require_one_request(X: Any, y: Any, indices: Indices | None) -> None:
    """Raise unless a request names rows in exactly one way."""
    if (X is None) != (y is None):
        raise MissingNeedError("rows are forgotten with their targets: pass both, as in `forget(X, y)`")
    if (X is None) == (indices is None):
        raise SettingError("name the rows to forget in one way: `forget(X, y)` or `forget(indices=[...])`")


def store_or_refuse(store: RowStore | None) -> RowStore:
    """The store, or a MissingNeedError where the estimator keeps no rows."""
    if store is None:
        raise MissingNeedError(
            "this estimator keeps no rows (keep_rows=False), so positions mean nothing to it; pass the rows "
            "themselves: `forget(X[indices], y[indices])`"
        )
    return store


def numbers(values: Any) -> Tensor:
    """A float64 copy of an array: (rows, columns)."""
    copied = torch.from_numpy(np.array(values, dtype=np.float64, order="C"))
    return copied.reshape(len(copied), -1)


def codes(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """The place of each label among sorted classes; raise a LabelError for one that is none of them."""
    known = np.isin(labels, classes)
    if not known.all():
        raise LabelError(
            f"{int((~known).sum())} of the {len(labels)} labels are none of the {len(classes)} classes that the "
            "estimator was fitted to; correct the labels"
        )
    return np.searchsorted(classes, labels).astype(np.int64)
