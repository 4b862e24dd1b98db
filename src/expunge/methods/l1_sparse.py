"""l1-sparse fine-tuning: fine-tune on the retain set while most weights are drawn towards nought."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import SettingError
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.tasks import Batch
from expunge.training import Algorithm, Objective, Optimizer, Run, Term


@dataclass(frozen=True)
class L1Sparse(Method):
    """Minimise the retain loss plus a_t · ‖θ‖₁, where a_t falls from `penalty` to nought, epoch by epoch.

    In epoch e of E, counted from 0, a_t = penalty · (1 - e / (E - plain_epochs)), and nought in the last
    `plain_epochs`. No forget example is read. It works for whole classes, parts of them and single examples.

    Args:
        penalty: 1e-4 (script of the comparison in Wu and Harandi 2024, Scissorhands; the code's own .2 moves every
            weight by .002 a step at the default rate, which leaves nothing of a network).
        learning_rate: .01 (code).
        epochs: Passes over the retain set. Default 10 (code).
        plain_epochs: Of these without the penalty. Default 0.
        batch_size: 256 (code).
        weight_decay: 5e-4 (code), with SGD and momentum .9.
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Jia et al. 2023 (arXiv 2304.04934), l1-sparse MU"
    maturity: ClassVar = Maturity.STABLE

    penalty: float = 1e-4
    learning_rate: float = 0.01
    epochs: int = 10
    plain_epochs: int = 0
    batch_size: int = 256
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "penalty", "learning_rate")
        require_whole(self, "epochs", "batch_size")
        require_whole(self, "plain_epochs", least=0)
        require_at_least(self, 0, "weight_decay")
        if self.plain_epochs >= self.epochs:
            raise SettingError(f"plain_epochs must be below epochs ({self.epochs}), not {self.plain_epochs}")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a copy of the model, an epoch a phase, for the penalty is another in each."""
        model = run.copy(problem.model)
        for epoch in range(self.epochs):
            strength = self.penalty * max(0.0, 1 - epoch / (self.epochs - self.plain_epochs))
            objective = _penalised(problem.task.losses, strength)
            term = Term(cast(MapDataset, problem.retain), objective, batch_size=self.batch_size)
            optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9, weight_decay=self.weight_decay)
            run.train(f"epoch-{epoch + 1}", model, [term], optimizer, epochs=1, carry_optimizer=True)
        return model.eval()


def _penalised(losses: Objective, strength: float) -> Objective:
    def objective(model: nn.Module, batch: Batch) -> Tensor:
        length = torch.stack([weight.abs().sum() for weight in model.parameters()]).sum()
        return losses(model, batch) + strength * length

    return objective
