"""UNDIAL: distilling the model into itself with the memorised tokens' logits lowered."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._labelled import labelled
from expunge.methods._language import LanguageMethod, Student
from expunge.methods.base import Maturity
from expunge.settings import require_positive
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Term


@dataclass(frozen=True)
class UNDIAL(LanguageMethod):
    """Minimise the cross-entropy to the original's softmax with the true token's logit lowered by `strength`.

    Only tokens that carry a loss count, so that prompts and padding are left alone. No retained data are read.

    Args:
        learning_rate: 1e-4 (OpenUnlearning, code).
        strength: 10 logits (ibid.); the authors' code has 3.
    """

    paper: ClassVar = "Dong et al. 2024 (arXiv 2402.10052)"
    maturity: ClassVar = Maturity.STABLE

    learning_rate: float = 1e-4
    strength: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_positive(self, "strength")

    def terms(self, student: Student) -> list[Term]:
        """The distillation; the original's predictions are computed here, once."""
        reference = student.reference(student.forget)

        def objective(model: nn.Module, batch: TextBatch) -> Tensor:
            said = labelled(student.task, model, batch)
            original = reference.logits(batch["numbers"])
            return said.mean(undial_loss(said.logits, original, said.targets, self.strength))

        return [Term(student.forget, objective, batch_size=self.batch_size)]


def undial_loss(logits: Tensor, original: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Cross-entropy of the model to softmax(original - strength · one-hot(target)): (tokens,)."""
    places = targets[:, None]
    lowered = original.scatter(1, places, original.gather(1, places) - strength)
    return F.cross_entropy(logits, lowered.softmax(1), reduction="none")
