"""Labels that are wrong on purpose."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.tasks import Batch, Classification
from expunge.training import ReferredObjective


def wrong_labels(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """For each example a class that is not its own, each of the others as likely: (examples,) int64."""
    return (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes


def given_labels(task: Classification) -> ReferredObjective:
    """Cross-entropy to labels that stand in the term's reference, in nats: (batch,)."""

    def objective(model: nn.Module, batch: Batch, labels: Tensor) -> Tensor:
        return F.cross_entropy(task.outputs(model, batch), labels, reduction="none")

    return objective
