"""The sums of classifiers that take each class for a normal distribution: naive Bayes and linear discriminants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.errors import CurvatureError, ModelError
from expunge.networks import GaussianNaiveBayes
from expunge.settings import require_at_least, require_below
from expunge.states.double_double import DoubleDouble, gram, squares
from expunge.states.statistics import SufficientStatistics, factorised, linear_layer, ratio, with_constant
from expunge.tasks import Task

_NEVER = -1e4
"""Logit of a class without rows, so low that it is never predicted."""


@dataclass(frozen=True)
class NaiveBayesStatistics(SufficientStatistics):
    """Number, sum and sum of squares of every feature in every class: Gaussian naive Bayes.

    Args:
        smoothing: Share of the largest variance of a feature that is added to every variance (scikit-learn's rule).
    """

    kind: ClassVar[str] = "naive-bayes"

    smoothing: float = 1e-9

    def __post_init__(self) -> None:
        """Check the smoothing."""
        require_at_least(self, 0, "smoothing")

    @classmethod
    def settings_for(cls, model: nn.Module, task: Task, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings as they are."""
        _naive_bayes(model)
        return settings

    @classmethod
    def measure(cls, inputs: Tensor, targets: Tensor) -> dict[str, DoubleDouble]:
        """`sums`: (classes, features + 1), the number of rows last; `squares`: (classes, features)."""
        high, low = squares(inputs)
        return {"sums": gram(targets, with_constant(inputs)), "squares": gram(targets, high) + gram(targets, low)}

    def outweighed(self, inputs: Tensor, targets: Tensor) -> float:
        """Squares of features by class, by the class's variances; squares of all, by the largest variance of all."""
        counts, variances = self._counts(), self._variances()
        by_class = torch.where(counts > 0, ratio(targets.T @ inputs.square(), counts * variances), 0.0)
        overall = ratio(inputs.square().sum(0), len(self.rows) * self._spread().max())
        return float(torch.maximum(by_class.max(), overall.max()))

    def solve(self) -> dict[str, Tensor]:
        """Means and variances (classes, features), and logarithms of the shares of the classes (classes,).

        Raises:
            CurvatureError: A variance is zero.
        """
        counts = self._counts()
        shares, held = counts[:, 0] / len(self.rows), counts > 0
        variances = self._variances()
        if bool((held & (variances <= 0)).any()):
            raise CurvatureError("a feature does not vary within a class; raise the smoothing, or drop the feature")
        return {
            "means": torch.where(held, self._means().value, 0.0),
            "variances": torch.where(held, variances, 1.0),
            "log_priors": torch.where(held[:, 0], shares.log(), _NEVER),
        }

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Means, variances and log priors."""
        return dict(_naive_bayes(model).named_parameters())

    def _counts(self) -> Tensor:
        return self.sums["sums"].value[:, -1:]

    def _means(self) -> DoubleDouble:
        return self.sums["sums"][:, :-1].over(self._counts().clamp(min=1))

    def _variances(self) -> Tensor:
        """With smoothing: (classes, features)."""
        about_mean = (self.sums["squares"] - self._means() * self.sums["sums"][:, :-1]).value.clamp(min=0)
        return about_mean / self._counts().clamp(min=1) + self.smoothing * self._spread().max()

    def _spread(self) -> Tensor:
        """Variance of each feature over all rows: (features,)."""
        every = self.sums["sums"].sum(0)[:-1]
        about_mean = self.sums["squares"].sum(0) - every.over(self._counts().sum()) * every
        return about_mean.value / len(self.rows)


@dataclass(frozen=True)
class DiscriminantStatistics(SufficientStatistics):
    """Products of features, and number and sum in every class: linear discriminant analysis.

    The fit is the log posterior of normal classes with one covariance, which is linear in the features.

    Args:
        shrinkage: Share, from 0 to below 1, of the mean variance times the identity in the pooled covariance.
    """

    kind: ClassVar[str] = "lda"

    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        """Check the shrinkage."""
        require_at_least(self, 0, "shrinkage")
        require_below(self, 1, "shrinkage")

    @classmethod
    def settings_for(cls, model: nn.Module, task: Task, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings as they are, for a linear layer with a bias."""
        if cast("Tensor | None", linear_layer(model, cls.kind).bias) is None:
            raise ModelError("a linear discriminant has an intercept; build the layer with a bias")
        return settings

    @classmethod
    def measure(cls, inputs: Tensor, targets: Tensor) -> dict[str, DoubleDouble]:
        """`features`: (features, features); `sums`: (classes, features + 1), the number of rows last."""
        return {"features": gram(inputs, inputs), "sums": gram(targets, with_constant(inputs))}

    def outweighed(self, inputs: Tensor, targets: Tensor) -> float:
        """Squares of features by the diagonal of the pooled scatter."""
        left = len(self.rows) * self._covariance().diagonal()
        return float(ratio(inputs.square().sum(0), left).max())

    def solve(self) -> dict[str, Tensor]:
        """Weight (classes, features) and bias (classes,).

        Raises:
            CurvatureError: The pooled covariance is singular.
        """
        counts = self.sums["sums"].value[:, -1]
        held = counts > 0
        sums = self.sums["sums"][held]
        means = sums[:, :-1].value / sums[:, -1:].value
        factor = factorised(
            self._covariance(),
            f"the pooled covariance of {len(self.rows)} rows",
            "use a shrinkage above 0, or drop features",
        )
        weight = torch.zeros(len(counts), self.shape[0], dtype=torch.double)
        bias = torch.full((len(counts),), _NEVER, dtype=torch.double)
        weight[held] = torch.cholesky_solve(means.T, factor).T
        bias[held] = -0.5 * (weight[held] * means).sum(1) + (counts[held] / len(self.rows)).log()
        return {"weight": weight, "bias": bias}

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the one linear layer."""
        return dict(linear_layer(model, self.kind).named_parameters())

    def _covariance(self) -> Tensor:
        """Of the rows about the means of their classes, with shrinkage: (features, features)."""
        covariance = self._pooled() / len(self.rows)
        mean_variance = covariance.diagonal().mean()
        identity = torch.eye(len(covariance), dtype=torch.double)
        return (1 - self.shrinkage) * covariance + self.shrinkage * mean_variance * identity

    def _pooled(self) -> Tensor:
        """Scatter of the rows about the means of their classes: (features, features)."""
        total, sums = self.sums["features"], self.sums["sums"][self.sums["sums"].value[:, -1] > 0]
        for row in range(len(sums.high)):
            total = total - sums[row, :-1].over(sums.high[row, -1])[:, None] * sums[row : row + 1, :-1]
        return total.value


def _naive_bayes(model: nn.Module) -> GaussianNaiveBayes:
    if not isinstance(model, GaussianNaiveBayes):
        raise ModelError(
            f"naive-bayes statistics are of `expunge.networks.GaussianNaiveBayes`, not of {type(model).__name__}"
        )
    return model
