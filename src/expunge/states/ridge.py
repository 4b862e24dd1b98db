"""The sums of ridge regression, and of the classifier made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.settings import require_at_least
from expunge.states.double_double import DoubleDouble, gram
from expunge.states.statistics import SufficientStatistics, factorised, linear_layer, with_constant
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

    def solve(self) -> dict[str, Tensor]:
        """Weight (columns, features) and, with an intercept, bias (columns,).

        Raises:
            CurvatureError: The system is singular.
        """
        features, targets = self.sums["features"], self._signed()
        scatter, cross = features[:-1, :-1], targets[:-1]
        mean, middle = features[-1, :-1].over(features.high[-1, -1]), targets[-1].over(features.high[-1, -1])
        if self.intercept:  # about the means
            scatter = scatter - mean[:, None] * features[-1:, :-1]
            cross = cross - mean[:, None] * targets[-1:]
        system = scatter.value + self.penalty * torch.eye(len(scatter.high), dtype=torch.double)
        factor = factorised(
            system, f"the scatter of {len(self.rows)} rows with penalty {self.penalty:g}", "use a larger penalty"
        )
        weight = torch.cholesky_solve(cross.value, factor).T
        if not self.intercept:
            return {"weight": weight}
        return {"weight": weight, "bias": middle.value - weight @ mean.value}

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Those of the one linear layer."""
        return dict(linear_layer(model, self.kind).named_parameters())

    def _signed(self) -> DoubleDouble:
        """Products with targets; those with 0 and 1 become those with -1 and 1."""
        targets = self.sums["targets"]
        if not self.classes:
            return targets
        ones = self.sums["features"][:, -1:]
        return targets + targets - ones
