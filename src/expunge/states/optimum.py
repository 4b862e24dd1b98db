"""A recipe for heads at the optimum of their objective, with or without noise on the weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn

from expunge.data import MapDataset
from expunge.settings import require_at_least, require_one_of, require_positive
from expunge.states.head import HeadLoss, fit_head, head_of, head_rows, set_head_weights
from expunge.tasks import Classification
from expunge.training.seeds import generator, reproducible, seed_globals


@dataclass(frozen=True)
class HeadOptimum:
    """Train the linear head of a model to its optimum, the layers before it staying as they are built.

    Without noise it trains what `expunge.record` wants. With the sigma of a certificate it is the certificate's
    reference: retraining and independent noise. Oracles of such a deletion are draws of it, because retraining alone
    is deterministic and the deleted model has noise on it.

    Args:
        build: Makes the model; it is called under the seed.
        task: What it is for.
        l2: Strength of the penalty (l2/2)‖W‖² beside the mean loss.
        loss: `softmax` or `one-vs-rest`.
        tolerance: Gradient norm at which training stops.
        sigma: Standard deviation of the Gaussian noise on each weight, drawn from the seed.

    Raises:
        SettingError: A value is out of range.
    """

    build: Callable[[], nn.Module]
    task: Classification
    l2: float
    loss: HeadLoss = HeadLoss.SOFTMAX
    tolerance: float = 1e-10
    sigma: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "l2", "tolerance")
        require_at_least(self, 0, "sigma")
        require_one_of(self, "loss", HeadLoss)

    def with_noise(self, sigma: float) -> Self:
        """The same with noise of this standard deviation."""
        return replace(self, sigma=sigma)

    def __call__(self, dataset: MapDataset, seed: int) -> nn.Module:
        """Train on `dataset`; without noise nothing but `build` heeds the seed.

        Raises:
            ConvergenceError: The tolerance is not reached, which rounding may prevent.
            ModelError: The model has no linear head as its last layer.
        """
        with reproducible():
            seed_globals(seed, "build")
            model = self.build().eval()
            weights = fit_head(head_rows(model, self.task, dataset, self.loss), self.l2, tolerance=self.tolerance)
            noise = torch.randn(weights.shape, generator=generator(seed, "reference noise"), dtype=torch.double)
            set_head_weights(head_of(model, self.task), weights + self.sigma * noise)
        return model
