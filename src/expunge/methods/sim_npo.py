"""SimNPO: negative preference optimisation without a reference."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from expunge.methods._labelled import mean_losses
from expunge.methods._language import Student, WithRetainLoss
from expunge.methods.base import Maturity
from expunge.settings import require_at_least, require_positive
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Objective


@dataclass(frozen=True)
class SimNPO(WithRetainLoss):
    """Minimise -(2 / beta) · log sigmoid(beta · (mean NLL - margin)) of forget answers, besides the retain term.

    The loss is normalised by the answer's length instead of compared with the original.

    Args:
        forget_weight: .125 (Fan et al. 2024, code, TOFU forget10).
        beta: 4.5 (ibid.).
        margin: Mean NLL in nats below which an answer counts as known. Default 0 (ibid.). It is the `delta` of
            OpenUnlearning's code; the paper's gamma stands outside of beta and is beta · margin.
    """

    paper: ClassVar = "Fan et al. 2024 (arXiv 2410.07163)"
    maturity: ClassVar = Maturity.STABLE

    forget_weight: float = 0.125
    beta: float = 4.5
    margin: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_positive(self, "beta")
        require_at_least(self, 0, "margin")

    def forget_objective(self, student: Student) -> Objective:
        """The loss by length, of which the original is no part."""

        def objective(model: nn.Module, batch: TextBatch) -> Tensor:
            return sim_npo_loss(mean_losses(student.task, model, batch), self.beta, self.margin)

        return objective


def sim_npo_loss(mean_nll: Tensor, beta: float, margin: float) -> Tensor:
    """-(2 / beta) · log sigmoid(beta · (mean NLL - margin)): (batch,)."""
    return -2 / beta * F.logsigmoid(beta * (mean_nll - margin))
