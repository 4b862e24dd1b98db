"""GradDiff: ascend on the forget set while the retain set is held."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.methods._labelled import mean_losses
from expunge.methods._language import Student, WithRetainLoss
from expunge.methods.base import Maturity
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Objective


@dataclass(frozen=True)
class GradDiff(WithRetainLoss):
    """Minimise retain_weight · L(retain) - forget_weight · NLL(forget), one batch of each a step.

    Unbounded, as gradient ascent is: with a larger rate or more epochs the model collapses on the forget set and
    beyond what retraining would do. Weights of 1 are those of OpenUnlearning.
    """

    paper: ClassVar = "Maini et al. 2024 (arXiv 2401.06121); Liu et al. 2022 (arXiv 2203.12817)"
    maturity: ClassVar = Maturity.STABLE

    def forget_objective(self, student: Student) -> Objective:
        """The mean log-likelihood of each example's tokens, which is made small."""

        def objective(model: nn.Module, batch: TextBatch) -> Tensor:
            return -mean_losses(student.task, model, batch)

        return objective
