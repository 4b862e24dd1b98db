"""Number, mean and covariance of each class: what a surrogate can be drawn from when the data are gone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.errors import StateError
from expunge.states.double_double import DoubleDouble, gram
from expunge.states.statistics import SufficientStatistics, with_constant
from expunge.tasks import Task

_LIMIT_BYTES = 2 * 2**30


@dataclass(frozen=True)
class ClassMoments(SufficientStatistics):
    """Sums and products of features by class, of any classifier's training set; rows can be taken out of them.

    They determine no parameter of the model. What is drawn from them is a surrogate; nothing that is computed with it
    is thereby certified.
    """

    kind: ClassVar[str] = "moments"

    @classmethod
    def settings_for(cls, model: nn.Module, task: Task, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings as they are; there are none."""
        return settings

    @classmethod
    def measure(cls, inputs: Tensor, targets: Tensor) -> dict[str, DoubleDouble]:
        """`sums`: (classes, features + 1), the number of rows last; `products`: (classes, features, features).

        Raises:
            StateError: The products would take more than 2 GiB.
        """
        classes, features = targets.shape[1], inputs.shape[1]
        needed = 16 * classes * features**2
        if needed > _LIMIT_BYTES:
            raise StateError(
                f"the products of {features} features in {classes} classes take {needed / 2**30:.1f} GiB, above "
                f"{_LIMIT_BYTES / 2**30:.0f} GiB; record the moments of features that a network makes of the inputs"
            )
        each = [gram(rows, rows) for rows in (inputs[targets[:, label] > 0] for label in range(classes))]
        products = DoubleDouble(torch.stack([one.high for one in each]), torch.stack([one.low for one in each]))
        return {"sums": gram(targets, with_constant(inputs)), "products": products}

    def solve(self) -> dict[str, Tensor]:
        """Nothing: no parameter follows from the moments."""
        return {}

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    @property
    def counts(self) -> Tensor:
        """Rows of each class: (classes,) float64."""
        return self.sums["sums"].value[:, -1]

    @property
    def means(self) -> Tensor:
        """Of each class: (classes, features) float64; zero for a class without rows."""
        return self.sums["sums"].value[:, :-1] / self.counts.clamp(min=1)[:, None]

    @property
    def covariances(self) -> Tensor:
        """Of each class, over its rows: (classes, features, features) float64."""
        sums, counts = self.sums["sums"][:, :-1], self.counts.clamp(min=1)
        means = sums.over(counts[:, None])
        about_mean = self.sums["products"] - means[:, :, None] * sums[:, None, :]
        return about_mean.value / counts[:, None, None]

    def overall(self) -> tuple[Tensor, Tensor]:
        """Mean (features,) and covariance (features, features) of all rows."""
        shares, means = self.counts / self.counts.sum(), self.means
        mean = shares @ means
        apart = means - mean
        within = (shares[:, None, None] * self.covariances).sum(0)
        return mean, within + (shares[:, None] * apart).T @ apart
