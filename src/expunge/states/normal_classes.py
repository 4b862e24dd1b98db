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
from expunge.states.statistics import SufficientStatistics, factorised, linear_layer, with_constant
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

    def solve(self) -> dict[str, Tensor]:
        """Means and variances (classes, features), and logarithms of the shares of the classes (classes,).

        Raises:
            CurvatureError: A variance is zero.
        """
        sums, of_squares = self.sums["sums"], self.sums["squares"]
        counts = sums.value[:, -1:]
        shares, held = counts[:, 0] / len(self.rows), counts > 0
        means = sums[:, :-1].over(counts.clamp(min=1))
        variances = (of_squares - means * sums[:, :-1]).value.clamp(min=0) / counts.clamp(min=1)
        every = sums.sum(0)[:-1]
        spread = (of_squares.sum(0) - every.over(counts.sum()) * every).value / len(self.rows)
        variances = variances + self.smoothing * spread.max()
        if bool((held & (variances <= 0)).any()):
            raise CurvatureError("a feature does not vary within a class; raise the smoothing, or drop the feature")
        return {
            "means": torch.where(held, means.value, 0.0),
            "variances": torch.where(held, variances, 1.0),
            "log_priors": torch.where(held[:, 0], shares.log(), _NEVER),
        }

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Means, variances and log priors."""
        return dict(_naive_bayes(model).named_parameters())


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

    def solve(self) -> dict[str, Tensor]:
        """Weight (classes, features) and bias (classes,).

        Raises:
            CurvatureError: The pooled covariance is singular.
        """
        counts = self.sums["sums"].value[:, -1]
        held = counts > 0
        sums = self.sums["sums"][held]
        means = sums[:, :-1].value / sums[:, -1:].value
        covariance = self._pooled(sums) / len(self.rows)
        mean_variance = covariance.diagonal().mean()
        identity = torch.eye(len(covariance), dtype=torch.double)
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * mean_variance * identity
        factor = factorised(
            covariance, f"the pooled covariance of {len(self.rows)} rows", "use a shrinkage above 0, or drop features"
        )
        weight = torch.zeros(len(counts), self.shape[0], dtype=torch.double)
        bias = torch.full((len(counts),), _NEVER, dtype=torch.double)
        weight[held] = torch.cholesky_solve(means.T, factor).T
        bias[held] = -0.5 * (weight[held] * means).sum(1) + (counts[held] / len(self.rows)).log()
        return {"weight": weight, "bias": bias}

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the one linear layer."""
        return dict(linear_layer(model, self.kind).named_parameters())

    def _pooled(self, sums: DoubleDouble) -> Tensor:
        """Scatter of the rows about the means of their classes: (features, features)."""
        total = self.sums["features"]
        for row in range(len(sums.high)):
            total = total - sums[row, :-1].over(sums.high[row, -1])[:, None] * sums[row : row + 1, :-1]
        return total.value


def _naive_bayes(model: nn.Module) -> GaussianNaiveBayes:
    if not isinstance(model, GaussianNaiveBayes):
        raise ModelError(
            f"naive-bayes statistics are of `expunge.networks.GaussianNaiveBayes`, not of {type(model).__name__}"
        )
    return model
