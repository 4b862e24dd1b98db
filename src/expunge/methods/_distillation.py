"""What another model says of the examples that will be visited, and how far a model is from it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.tasks import Classification
from expunge.training import Run, over_batches


def logits_of(run: Run, model: nn.Module, task: Classification, dataset: MapDataset) -> Tensor:
    """A model's logits in evaluation mode, in the order of the examples: (examples, classes), on the CPU.

    They are kept instead of a second model, so a dataset must give the same example each time that it is read.
    """
    return torch.cat(over_batches(run, run.frozen(model), dataset, task.outputs)).clone()


def softened_divergence(logits: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL(softmax(reference / T) || softmax(logits / T)) in nats: two of (batch, classes) to (batch,).

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2, for the factor. A class that the reference rules out (by a
    logit of minus infinity) counts nothing.
    """
    log_p, log_q = (reference / temperature).log_softmax(1), (logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_q, log_p.exp(), reduction="none").sum(1)
