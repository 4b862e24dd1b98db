"""Noise in the input space of a model, learned so that the model errs on it or is sure of it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.data import MapDataset
from expunge.tasks import Batch, Classification
from expunge.training import Run, Term, over_batches


class NoiseImages(nn.Module):
    """Noise whose values are what is trained; a forward pass picks some of them by position."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(start)  # (noise images, ...) in the model's input space

    def forward(self, positions: Tensor) -> Tensor:
        """The noise at these positions: (positions, ...)."""
        return self.values[positions]


def error_term(original: nn.Module, task: Classification, labels: Tensor, *, weight: float, penalty: float) -> Term:
    """What noise is trained on: `weight` times the original's cross-entropy, and a penalty.

    Args:
        original: Frozen and in evaluation mode; its logits are all that is asked of it.
        task: How it is asked.
        labels: (noise images,) the class that each image stands for.
        weight: 1 for noise that the original is to be sure of, -1 for noise on which it is to err.
        penalty: Weight of the noise's mean square per input element, which weighs the same at every resolution.
    """

    def objective(images: nn.Module, batch: Batch) -> Tensor:
        values = images(batch["inputs"].long())
        logits = task.outputs(original, {"inputs": values})
        error = F.cross_entropy(logits, batch["labels"], reduction="none")
        return penalty * values.square().flatten(1).mean(1) + weight * error

    positions = torch.arange(len(labels), dtype=torch.get_default_dtype())
    return Term(TensorDataset(*task.fields(positions, labels)), objective, batch_size=len(labels))


def mean_error(run: Run, model: nn.Module, noise: MapDataset) -> float:
    """Mean loss of a model on noise, in nats."""
    return float(torch.cat(over_batches(run, run.frozen(model), noise, run.task.losses)).mean())
