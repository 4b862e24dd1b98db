"""What the estimators have in common that are a formula of sums."""

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from expunge.errors import ForgetSetError
from expunge.estimators._rows import Indices, Request, RowStore, codes, numbers, read_again, read_labelled
from expunge.methods.exactness import certify_fit
from expunge.privacy import Certificate
from expunge.states import SufficientStatistics


class StatisticsEstimator(BaseEstimator):
    """An estimator that holds sums instead of data, and forgets by taking rows out of them.

    Attributes:
        certificate_: What is guaranteed of the last deletion (`expunge.Certificate`); there is none before one.
    """

    keep_rows: bool
    certificate_: Certificate

    def forget(self, X: Any = None, y: Any = None, *, indices: Indices | None = None) -> Self:
        """Forget rows: the estimator becomes the one that is fitted to the others.

        Args:
            X: The rows, (rows, features), exactly as they were given to `fit`; with
            y: their targets. Or
            indices: positions of the rows in the data given to `fit`, or a mask over them; positions stay valid when
                other rows are forgotten. This needs `keep_rows`.

        Returns:
            The estimator itself, with `certificate_` set.

        Raises:
            UnknownRowError: A row was never fitted to, or was forgotten before.
            AlreadyForgottenError: A row that is named by its position was forgotten before.
            ForgetSetError: Nothing, or too little to fit to, would be left.
            MissingNeedError: Positions are given to an estimator that keeps no rows.
        """
        check_is_fitted(self)
        request = Request.read(X, y, indices, self._rows, self._asked)
        left = self._statistics.without(request.inputs, request.targets)
        fitted = self._attributes(left)
        if self._rows is not None:
            fitted["_rows"] = self._rows.without(request.places_in(self._rows, self._statistics.rows))
        fitted |= {"_statistics": left, "certificate_": certify_fit(left, len(request.inputs))}
        self.__dict__.update(fitted)
        return self

    def _settle(self, statistics: SufficientStatistics, inputs: Tensor, targets: Tensor) -> Self:
        """Take over what was fitted; nothing is changed before all of it is there."""
        fitted = self._attributes(statistics)
        self.__dict__.update(fitted)
        self._statistics = statistics
        self._rows = RowStore.of(inputs, targets, statistics.rows) if self.keep_rows else None
        self.__dict__.pop("certificate_", None)
        return self

    @abstractmethod
    def _asked(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Inputs and columns of targets of the rows to forget."""

    @abstractmethod
    def _attributes(self, statistics: SufficientStatistics) -> dict[str, Any]:
        """The public attributes of a fit, by name."""


class StatisticsClassifier(StatisticsEstimator):
    """The same with classes: their columns of targets are 1 for the row's class and 0 elsewhere."""

    def _read(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Validated inputs and columns of targets for `fit`; the classes of the fit are set."""
        inputs, labels = read_labelled(self, X, y)
        self._fitted_classes: NDArray[Any] = np.unique(labels)
        return inputs, self._columns(labels)

    def _asked(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = read_again(self, X, y)
        return inputs, self._columns(labels)

    def _columns(self, y: NDArray[Any]) -> Tensor:
        return numbers(np.eye(len(self._fitted_classes))[codes(y, self._fitted_classes)])

    def _held(self, counts: Tensor, least: int) -> NDArray[np.bool_]:
        """Which classes have rows left; at least so many must."""
        held = (counts > 0).numpy()
        if held.sum() < least:
            if len(held) < least:
                raise ValueError(f"all {int(counts.sum())} rows are of one class; add rows of another class")
            raise ForgetSetError("only one class would be left, between which and others there is nothing to learn")
        return held
