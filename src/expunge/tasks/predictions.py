"""What a language model expects at each place of a text, and fitting the layer that says so."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.tasks._text import IGNORED

_HEAD_PENALTY, _HEAD_STEPS, _HEAD_CHUNK = 1e-3, 100, 4096


@dataclass(frozen=True)
class Predictions:
    """What a model expects at each place where a token follows.

    Attributes:
        logits: (batch, places, vocabulary), in float32 at least; places before every label are left out.
        targets: (batch, places) the token that follows, or -100 where it carries no loss.
    """

    logits: Tensor
    targets: Tensor

    @property
    def mask(self) -> Tensor:
        """Whether a place carries a loss: (batch, places)."""
        return self.targets != IGNORED

    @property
    def counts(self) -> Tensor:
        """Tokens of each example that carry a loss: (batch,)."""
        return self.mask.sum(1)

    @property
    def losses(self) -> Tensor:
        """Negative log-likelihood of each token in nats, 0 where it carries no loss: (batch, places)."""
        flat = F.cross_entropy(
            self.logits.flatten(0, 1), self.targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return flat.view_as(self.targets)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the tokens of each example that carry a loss, of (batch, places): (batch,)."""
        return (values * self.mask).sum(1) / self.counts

    def by_place(self, values: Tensor, elsewhere: float = 0.0) -> Tensor:
        """Values of (tokens,) as `log_odds` orders them, at their places: (batch, places)."""
        found = torch.full(self.targets.shape, elsewhere, dtype=values.dtype, device=values.device)
        return found.masked_scatter(self.mask, values)

    @property
    def log_odds(self) -> Tensor:
        """log(p / (1 - p)) of each token that carries a loss, of all examples one after another: (tokens,)."""
        logits, targets = self.logits[self.mask], self.targets[self.mask][:, None]
        others = logits.scatter(1, targets, -torch.inf)
        return logits.gather(1, targets)[:, 0] - others.logsumexp(1)


def fitted_head(start: Tensor, bias: Tensor | None, features: Tensor, targets: Tensor) -> Tensor:
    """The matrix near `start` that predicts targets from features best: (vocabulary, features).

    It minimises the mean negative log-likelihood plus 5e-4 times the squared distance from `start`, by up to 100
    iterations of L-BFGS.

    Args:
        start: (vocabulary, features).
        bias: (vocabulary,), which stays as it is.
        features: (tokens, features).
        targets: (tokens,) int64.
    """
    weight = start.clone().requires_grad_(True)
    offset = None if bias is None else bias.detach().float()
    search = torch.optim.LBFGS([weight], max_iter=_HEAD_STEPS, history_size=10, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        search.zero_grad()
        total = torch.zeros((), device=weight.device)
        for seen, wanted in zip(features.split(_HEAD_CHUNK), targets.split(_HEAD_CHUNK), strict=True):
            part = F.cross_entropy(F.linear(seen, weight, offset), wanted, reduction="sum") / len(targets)
            part.backward()
            total += part.detach()
        penalty = 0.5 * _HEAD_PENALTY * (weight - start).square().sum()
        penalty.backward()
        return total + penalty.detach()

    with torch.enable_grad():
        search.step(objective)
    return weight.detach()
