"""NPO: negative preference optimisation."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._labelled import log_probability
from expunge.methods._language import Student, WithRetainLoss
from expunge.methods.base import Maturity
from expunge.settings import require_positive
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Objective


@dataclass(frozen=True)
class NPO(WithRetainLoss):
    """Minimise (2 / beta) · log(1 + (p / p_original)^beta) of whole forget answers, besides the retain term.

    Bounded below, unlike ascent. As beta goes to 0 its gradient becomes that of ascent, while the loss itself grows
    without bound, as (2 / beta) · log 2. p is the probability of all labelled tokens of an example together.

    Args:
        beta: .1 (Zhang et al. 2024, code).
    """

    paper: ClassVar = "Zhang et al. 2024 (arXiv 2404.05868)"
    maturity: ClassVar = Maturity.STABLE

    beta: float = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_positive(self, "beta")

    def forget_objective(self, student: Student) -> Objective:
        """The negative preference loss against the original's log-probabilities, which are computed here, once."""
        original = student.log_probabilities(student.forget)

        def objective(model: nn.Module, batch: TextBatch) -> Tensor:
            own = log_probability(student.task, model, batch)
            return npo_loss(own, original[batch["numbers"]], self.beta)

        return objective


def npo_loss(log_p: Tensor, log_p_original: Tensor, beta: float) -> Tensor:
    """(2 / beta) · log(1 + (p / p_original)^beta): (batch,)."""
    return 2 / beta * F.softplus(beta * (log_p - log_p_original))
