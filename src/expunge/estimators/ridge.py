"""Ridge regression, and the classifier made of it, that forget exactly."""

from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from expunge.estimators._rows import numbers
from expunge.estimators._statistics import StatisticsClassifier, StatisticsEstimator
from expunge.states import RidgeStatistics, SufficientStatistics

Floats = NDArray[np.float64]


class Ridge(MultiOutputMixin, RegressorMixin, StatisticsEstimator):
    """Linear least squares with an L2 penalty, equal to `sklearn.linear_model.Ridge`, that forgets rows exactly.

    Args:
        alpha: Weight of the penalty on the squared coefficients.
        fit_intercept: Whether there is an intercept, which is not penalised.
        keep_rows: Keep the rows, so that they can be forgotten by position. Without them the estimator holds sums and
            keyed digests only; set it to False where the raw data are to be discarded, or the estimator handed on.

    Attributes:
        coef_: (features,) or (targets, features).
        intercept_: A number, or (targets,); 0 where there is none.
        certificate_: What is guaranteed of the last deletion.

    Example:
        >>> import numpy as np
        >>> X, y = np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([0.0, 1.0, 2.0, 0.0])
        >>> model = Ridge(alpha=0.0).fit(X, y).forget(indices=[3])
        >>> round(float(model.predict([[5.0]])[0]), 6)
        5.0
    """

    coef_: Floats
    intercept_: Floats | float

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True, keep_rows: bool = True) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.keep_rows = keep_rows

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows (rows, features) and targets (rows,) or (rows, targets)."""
        rows, values = cast("tuple[Floats, Floats]", validate_data(self, X, y, multi_output=True, y_numeric=True))
        self._flat = values.ndim == 1
        inputs, targets = numbers(rows), numbers(values)
        statistics = RidgeStatistics.of(inputs, targets, penalty=self.alpha, intercept=self.fit_intercept)
        return self._settle(statistics, inputs, targets)

    def predict(self, X: Any) -> Floats:
        """Predictions: (rows,) or (rows, targets)."""
        check_is_fitted(self)
        rows = cast(Floats, validate_data(self, X, reset=False))
        return rows @ self.coef_.T + self.intercept_

    def _asked(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        rows, values = validate_data(self, X, y, reset=False, multi_output=True, y_numeric=True)
        return numbers(rows), numbers(values)

    def _attributes(self, statistics: SufficientStatistics) -> dict[str, Any]:
        coefficients, intercept = _solved(statistics)
        if self._flat:
            return {"coef_": coefficients[0], "intercept_": 0.0 if intercept is None else float(intercept[0])}
        return {"coef_": coefficients, "intercept_": 0.0 if intercept is None else intercept}


class RidgeClassifier(ClassifierMixin, StatisticsClassifier):
    """Ridge regression to 1 and -1, equal to `sklearn.linear_model.RidgeClassifier`, that forgets rows exactly.

    A class whose rows are all forgotten is no longer among `classes_`, as after a fit to the other rows. Like
    scikit-learn's it has no probabilities.

    Args:
        alpha: Weight of the penalty on the squared coefficients.
        fit_intercept: Whether there is an intercept, which is not penalised.
        keep_rows: As for `Ridge`.

    Attributes:
        classes_: (classes,) of the rows that are left.
        coef_: (classes, features), or (1, features) where there are two classes.
        intercept_: (classes,), or (1,); 0 where there is none.
        certificate_: What is guaranteed of the last deletion.
    """

    classes_: NDArray[Any]
    coef_: Floats
    intercept_: Floats | float

    def __init__(self, alpha: float = 1.0, *, fit_intercept: bool = True, keep_rows: bool = True) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.keep_rows = keep_rows

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows (rows, features) and labels (rows,)."""
        inputs, targets = self._read(X, y)
        statistics = RidgeStatistics.of(inputs, targets, penalty=self.alpha, intercept=self.fit_intercept, classes=True)
        return self._settle(statistics, inputs, targets)

    def decision_function(self, X: Any) -> Floats:
        """Fitted values: (rows, classes), or (rows,) for the second of two classes."""
        check_is_fitted(self)
        rows = cast(Floats, validate_data(self, X, reset=False))
        scores = rows @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of the largest fitted value: (rows,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def _attributes(self, statistics: SufficientStatistics) -> dict[str, Any]:
        held = self._held(statistics.sums["targets"].value[-1], 2)
        coefficients, intercept = _solved(statistics)
        chosen = np.flatnonzero(held)
        shown = chosen[1:] if len(chosen) == 2 else chosen
        return {
            "classes_": self._fitted_classes[held],
            "coef_": coefficients[shown],
            "intercept_": 0.0 if intercept is None else intercept[shown],
        }


def _solved(statistics: SufficientStatistics) -> tuple[Floats, Floats | None]:
    fitted = statistics.solve()
    intercept = cast(Floats, fitted["bias"].numpy()) if "bias" in fitted else None
    return cast(Floats, fitted["weight"].numpy()), intercept
