"""NegGrad+: descend on the retain set while ascending on the forget set."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_between, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class NegGradPlus(Method):
    """Minimise retain_weight · L(retain) - (1 - retain_weight) · L(forget), one batch of each a step.

    Args:
        retain_weight: .95 (Kurmanji et al. 2023, code).
        learning_rate: .01 (ibid.).
        epochs: Passes over the retain set. Default 10 (ibid.).
        batch_size: Of either set. Default 128 (ibid., large-scale runs).
        weight_decay: 5e-4 (ibid.).
        clip_norm: Largest gradient norm.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Kurmanji et al. 2023 (arXiv 2302.09880), section 4, NegGrad+"
    maturity: ClassVar = Maturity.STABLE

    retain_weight: float = 0.95
    learning_rate: float = 0.01
    epochs: float = 10
    batch_size: int = 128
    weight_decay: float = 5e-4
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_between(self, 0, 1, "retain_weight")
        require_positive(self, "learning_rate", "epochs", "clip_norm")
        require_at_least(self, 0, "weight_decay")
        require_whole(self, "batch_size")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a copy of the model on both terms."""
        model = run.copy(problem.model)
        losses, size = problem.task.losses, self.batch_size
        retain = Term(cast(MapDataset, problem.retain), losses, weight=self.retain_weight, batch_size=size)
        forget = Term(cast(MapDataset, problem.forget), losses, weight=self.retain_weight - 1, batch_size=size)
        optimizer = Optimizer(
            self.learning_rate,
            Algorithm.SGD,
            momentum=0.9,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )
        run.train("descend-and-ascend", model, [retain, forget], optimizer, epochs=self.epochs)
        return model.eval()
