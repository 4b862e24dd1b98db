"""Predictions of a language model in a form that can be kept for a whole set: over parts of the vocabulary."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.tasks.predictions import Predictions

_ABSENT = -1e30  # a logit of something that cannot be; its gradient is 0, where that of -inf is NaN


def parted_log_probabilities(said: Predictions, places: int, buckets: int) -> Tensor:
    """Log-probabilities of the true token and of parts of the other vocabulary: (batch, places, 1 + buckets).

    Args:
        said: Predictions of a batch.
        places: Most tokens of an example that are taken, evenly spread where there are more.
        buckets: Parts of the vocabulary, by token number modulo their number.
    """
    counts, width = said.counts, min(places, said.targets.shape[1])
    # Ranks of the chosen tokens among those that carry a loss: all of them, or evenly spread.
    spread = torch.arange(width, device=counts.device) * counts[:, None].clamp(min=width) // width
    chosen = torch.argsort((~said.mask).long(), dim=1, stable=True).gather(1, spread)
    there = torch.arange(width, device=counts.device) < counts[:, None]
    targets = said.targets.gather(1, chosen).where(there, 0)[..., None]
    logits = said.logits.gather(1, chosen[..., None].expand(-1, -1, said.logits.shape[2]))
    own, rest = logits.gather(2, targets), logits.scatter(2, targets, _ABSENT)
    uneven = -rest.shape[2] % buckets
    parts = F.pad(rest, (0, uneven), value=_ABSENT).unflatten(2, (-1, buckets)).logsumexp(2)
    found = torch.cat([own, parts], 2).log_softmax(2).masked_fill(~there[..., None], -torch.inf)
    return F.pad(found, (0, 0, 0, places - width), value=-torch.inf)


def divergence_by_place(outputs: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of two such outputs, averaged over the places of each example: (batch,)."""
    log_p, log_q = outputs.double(), reference.double()
    log_mean = torch.logaddexp(log_p, log_q) - np.log(2)
    terms = log_p.exp() * (log_p - log_mean) + log_q.exp() * (log_q - log_mean)
    by_place = 0.5 * terms.where(log_p != log_q, 0.0).sum(2).clamp(min=0)
    there = (log_p != -torch.inf).any(2)
    return by_place.sum(1) / there.sum(1)
