"""The sums of ridge regression, and of the classifier made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.settings import require_at_least
from expunge.states.double_double import DoubleDouble, gram
from expunge.states.statistics import SufficientStatistics, factorised, linear_layer, ratio, with_constant
from expunge.tasks import Classification, Task


@dataclass(frozen=True)
class RidgeStatistics(SufficientStatistics):
    """Products of features with one another and with targets: ridge regression, and the classifier made of it.

    The fit minimises the sum of squared errors plus `penalty` times the squared weights; an intercept is not penalised.
    Classes are fitted as numbers, 1 for the row's class and -1 for the others.

    Args:
        penalty: Of the squared weights; 0 for least squares.
        intercept: Whether there is one.
        classes: Whether targets are classes.
    """

    kind: ClassVar[str] = "ridge"

    penalty: float = 1.0
    intercept: bool = True
    classes: bool = False

    def __post_init__(self) -> None:
        """Check the penalty."""
        require_at_least(self, 0, "penalty")

    @classmethod
    def settings_for(cls, model: nn.Module, task: Task, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Whether there is an intercept is read from the model, whether there are classes from the task."""
        bias = cast("Tensor | None", linear_layer(model, cls.kind).bias)
        return {"intercept": bias is not None, "classes": isinstance(task, Classification), **settings}

    @classmethod
    def measure(cls, inputs: Tensor, targets: Tensor) -> dict[str, DoubleDouble]:
        """`features`: (features + 1, features + 1), with a constant feature; `targets`: (features + 1, columns)."""
        constant = with_constant(inputs)
        return {"features": gram(constant, constant), "targets": gram(constant, targets)}

    def outweighed(self, inputs: Tensor, targets: Tensor) -> float:
        """Squares of features by the diagonal of the system; targets by what is known of those of the others."""
        scatter, _ = self._about_means()
        features = ratio(inputs.square().sum(0), scatter.value.diagonal() + self.penalty)
        largest = torch.cat([features, torch.tensor([len(inputs) / len(self.rows)], dtype=torch.double)]).max()
        if self.classes:  # 1 and -1
            return float(largest)
        # by Cauchy and Schwarz, no target's norm is smaller than its product with a feature by that feature's norm
        norms = self.sums["features"].value.diagonal().clamp(min=torch.finfo(torch.double).tiny).sqrt()
        known = (self.sums["targets"].value.abs() / norms[:, None]).amax(0)
        sizes = torch.where(known > 0, ratio(targets.square().sum(0).sqrt(), known), 0.0)
        return float(torch.maximum(largest, largest.sqrt() * sizes.max()))

    def solve(self) -> dict[str, Tensor]:
        """Weight (columns, features) and, with an intercept, bias (columns,).

        Raises:
            CurvatureError: The system is singular.
        """
        scatter, cross = self._about_means()
        system = scatter.value + self.penalty * torch.eye(len(scatter.high), dtype=torch.double)
        factor = factorised(
            system, f"the scatter of {len(self.rows)} rows with penalty {self.penalty:g}", "use a larger penalty"
        )
        weight = torch.cholesky_solve(cross.value, factor).T
        if not self.intercept:
            return {"weight": weight}
        return {"weight": weight, "bias": self._mean(self._signed()).value - weight @ self._mean_features().value}

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the one linear layer."""
        return dict(linear_layer(model, self.kind).named_parameters())

    def _about_means(self) -> tuple[DoubleDouble, DoubleDouble]:
        """Products of features with one another and with targets; with an intercept, about the means."""
        features, targets = self.sums["features"], self._signed()
        scatter, cross = features[:-1, :-1], targets[:-1]
        if not self.intercept:
            return scatter, cross
        mean = self._mean_features()
        return scatter - mean[:, None] * features[-1:, :-1], cross - mean[:, None] * targets[-1:]

    def _mean_features(self) -> DoubleDouble:
        return self._mean(self.sums["features"])[:-1]

    def _mean(self, products: DoubleDouble) -> DoubleDouble:
        """Of what the constant feature was multiplied with."""
        return products[-1].over(self.sums["features"].high[-1, -1])

    def _signed(self) -> DoubleDouble:
        """Products with targets; those with 0 and 1 become those with -1 and 1."""
        targets = self.sums["targets"]
        if not self.classes:
            return targets
        ones = self.sums["features"][:, -1:]
        return targets + targets - ones
