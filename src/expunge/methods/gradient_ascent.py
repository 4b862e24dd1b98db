"""Gradient ascent on the forget set."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class GradientAscent(Method):
    """Climb the loss of the forget set.

    Unbounded: with a larger rate or more epochs the model collapses. Nothing is done for the retain set.

    Args:
        learning_rate: 1e-4 (Jia et al. 2023, code).
        epochs: Passes over the forget set. Default 5 (ibid.).
        batch_size: 256 (ibid.).
        clip_norm: Largest gradient norm.
    """

    needs: ClassVar = frozenset({Need.FORGET})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Thudi et al. 2022 (arXiv 2109.13398); settings of Jia et al. 2023"
    maturity: ClassVar = Maturity.STABLE

    learning_rate: float = 1e-4
    epochs: float = 5
    batch_size: int = 256
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "epochs", "clip_norm")
        require_whole(self, "batch_size")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Maximise the forget loss on a copy of the model."""
        model = run.copy(problem.model)
        forget = Term(cast(MapDataset, problem.forget), problem.task.losses, weight=-1.0, batch_size=self.batch_size)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9, clip_norm=self.clip_norm)
        run.train("ascend", model, [forget], optimizer, epochs=self.epochs)
        return model.eval()
