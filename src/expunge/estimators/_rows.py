"""The rows that an estimator was fitted to, for as long as it keeps them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
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


@dataclass(frozen=True)
class Request:
    """Rows to be forgotten, as `forget` was asked for them.

    Args:
        inputs: (rows, features) float64.
        targets: (rows, columns) float64.
        places: (rows,) int64, where they lie in the store, for those that were named by position.
    """

    inputs: Tensor
    targets: Tensor
    places: Tensor | None

    @classmethod
    def read(
        cls,
        X: Any,
        y: Any,
        indices: Indices | None,
        store: RowStore | None,
        as_columns: Callable[[Any, Any], tuple[Tensor, Tensor]],
    ) -> "Request":
        """What `forget(X, y)` or `forget(indices=...)` names; `as_columns` reads inputs and targets of the former.

        Raises:
            MissingNeedError: X or y is missing, or positions are given to an estimator that keeps no rows.
            SettingError: Rows are named in both ways, in none, or no position is given.
            AlreadyForgottenError: A row is no longer in the store.
        """
        _require_one_way(X, y, indices)
        if indices is None:
            return cls(*as_columns(X, y), None)
        held = _store_or_refuse(store)
        places = held.places(indices)
        return cls(held.inputs[places], held.targets[places], places)

    def places_in(self, store: RowStore, ledger: RowLedger) -> Tensor:
        """Where the rows lie in the store: (rows,) int64; the ledger, from before they are removed, knows them all."""
        return store.places_of(ledger.digests(self.inputs, self.targets)) if self.places is None else self.places


def read_labelled(estimator: BaseEstimator, X: Any, y: Any) -> tuple[Tensor, NDArray[Any]]:
    """Validated inputs (rows, features) and labels (rows,) for the `fit` of a classifier.

    Raises:
        ValueError: The data are not what scikit-learn takes.
    """
    rows, given = validate_data(estimator, X, y, ensure_min_samples=2)
    labels = column_or_1d(given, warn=True)
    check_classification_targets(labels)
    return numbers(rows), labels


def read_again(estimator: BaseEstimator, X: Any, y: Any) -> tuple[Tensor, NDArray[Any]]:
    """The same for rows of a classifier that is fitted.

    Raises:
        ValueError: The data are not what scikit-learn takes, or have other features than at `fit`.
    """
    rows, labels = validate_data(estimator, X, y, reset=False)
    return numbers(rows), column_or_1d(labels, warn=True)


def _require_one_way(X: Any, y: Any, indices: Indices | None) -> None:
    if (X is None) != (y is None):
        raise MissingNeedError("rows are forgotten with their targets: pass both, as in `forget(X, y)`")
    if (X is None) == (indices is None):
        raise SettingError("name the rows to forget in one way: `forget(X, y)` or `forget(indices=[...])`")


def _store_or_refuse(store: RowStore | None) -> RowStore:
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
