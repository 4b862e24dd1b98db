"""Gaussian naive Bayes that forgets exactly."""

from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.estimators._statistics import StatisticsClassifier
from expunge.states import NaiveBayesStatistics, SufficientStatistics

Floats = NDArray[np.float64]


class GaussianNB(ClassifierMixin, StatisticsClassifier):
    """Classes as normal distributions with independent features, equal to `sklearn.naive_bayes.GaussianNB`.

    It forgets rows exactly. A class whose rows are all forgotten is no longer among `classes_`.

    Args:
        var_smoothing: Share of the largest variance of a feature that is added to every variance.
        keep_rows: Keep the rows, so that they can be forgotten by position; see `Ridge`.

    Attributes:
        classes_: (classes,) of the rows that are left.
        class_count_: (classes,) rows of each.
        class_prior_: (classes,) their shares.
        theta_: (classes, features) means.
        var_: (classes, features) variances, smoothed.
        certificate_: What is guaranteed of the last deletion.
    """

    classes_: NDArray[Any]
    class_count_: Floats
    class_prior_: Floats
    theta_: Floats
    var_: Floats

    def __init__(self, *, var_smoothing: float = 1e-9, keep_rows: bool = True) -> None:
        self.var_smoothing = var_smoothing
        self.keep_rows = keep_rows

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows (rows, features) and labels (rows,)."""
        inputs, targets = self._read(X, y)
        return self._settle(NaiveBayesStatistics.of(inputs, targets, smoothing=self.var_smoothing), inputs, targets)

    def predict_joint_log_proba(self, X: Any) -> Floats:
        """Logarithm of the probability of a row and a class together: (rows, classes)."""
        check_is_fitted(self)
        rows = cast(Floats, validate_data(self, X, reset=False)).astype(np.float64)
        off = rows[:, None] - self.theta_
        density = (off**2 / self.var_ + np.log(2 * np.pi * self.var_)).sum(2)
        return np.log(self.class_prior_) - 0.5 * density

    def predict_log_proba(self, X: Any) -> Floats:
        """Logarithms of the probabilities of the classes: (rows, classes)."""
        joint = self.predict_joint_log_proba(X)
        return joint - cast(Floats, logsumexp(joint, axis=1, keepdims=True))

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities of the classes: (rows, classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class: (rows,)."""
        best = self.predict_joint_log_proba(X).argmax(1)
        return self.classes_[best]

    def _attributes(self, statistics: SufficientStatistics) -> dict[str, Any]:
        counts = statistics.sums["sums"].value[:, -1]
        held = self._held(counts, 1)
        fitted = {name: value.numpy()[held] for name, value in statistics.solve().items()}
        return {
            "classes_": self._fitted_classes[held],
            "class_count_": counts.numpy()[held],
            "class_prior_": counts.numpy()[held] / len(statistics.rows),
            "theta_": fitted["means"],
            "var_": fitted["variances"],
        }
