"""What a model predicts at the tokens that carry a loss, and nowhere else.

Prompts and padding need no logits, which are the largest tensors of a forward pass: a vocabulary for each token. So the
head is shown the labelled tokens alone, of all examples one after another.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.tasks import CausalLM
from expunge.tasks.causal_lm import TextBatch


@dataclass(frozen=True)
class Labelled:
    """Predictions at the labelled tokens of a batch.

    Attributes:
        seen: (tokens, features) what the head sees there.
        logits: (tokens, vocabulary); (0, vocabulary) where only `seen` was asked for.
        targets: (tokens,) the tokens themselves.
        counts: (batch,) how many each example has.
    """

    seen: Tensor
    logits: Tensor
    targets: Tensor
    counts: Tensor

    @property
    def losses(self) -> Tensor:
        """Negative log-likelihood of each token in nats: (tokens,)."""
        return F.cross_entropy(self.logits, self.targets, reduction="none")

    def total(self, values: Tensor) -> Tensor:
        """Values of (tokens,) added up by example: (batch,)."""
        examples = torch.arange(len(self.counts), device=values.device).repeat_interleave(self.counts)
        return values.new_zeros(len(self.counts)).index_add(0, examples, values)

    def mean(self, values: Tensor) -> Tensor:
        """Values of (tokens,) averaged by example: (batch,)."""
        return self.total(values) / self.counts


def labelled(task: CausalLM, model: nn.Module, batch: TextBatch, *, logits: bool = True) -> Labelled:
    """Predictions at the labelled tokens, from one forward pass whose head sees no other.

    Args:
        task: Of the model.
        model: A Hugging Face model.
        batch: As the task collates it.
        logits: Otherwise the head is shown nothing, for what it sees is asked for and not what it says.
    """
    follows = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    shown: list[Tensor] = []

    def select(_module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        places = arguments[0]  # the model may have left out those before the first label
        shown.append(places[follows[:, -places.shape[1] :] != -100])
        return (shown[-1] if logits else shown[-1][:0], *arguments[1:])

    handle = task.head_of(model).register_forward_pre_hook(select)
    try:
        said = task.predictions(model, batch)
    finally:
        handle.remove()
    return Labelled(shown[-1], said.logits, said.targets[said.mask], said.counts)


def mean_losses(task: CausalLM, model: nn.Module, batch: TextBatch) -> Tensor:
    """Mean negative log-likelihood of each example's labelled tokens in nats, as `task.losses`: (batch,)."""
    said = labelled(task, model, batch)
    return said.mean(said.losses)


def log_probability(task: CausalLM, model: nn.Module, batch: TextBatch) -> Tensor:
    """Log-probability of the labelled tokens of each example, added up: (batch,)."""
    said = labelled(task, model, batch)
    return -said.total(said.losses)
