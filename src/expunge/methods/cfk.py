"""CF-k: fine-tune the last layers on the retain set and hold the others."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.methods._last_layers import freeze_all_but, last_layers
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class CFK(Method):
    """Catastrophic forgetting in the last k layers: they are trained on, the others are not.

    What earlier layers learned of the forget set stays, to the bit, also statistics of their BatchNorm layers, which
    move in public code. No forget example is read. It works for whole classes, parts of them and single examples.

    Args:
        layers: k, layers with weight matrices or kernels, counted from the end; normalisation after the first of them
            belongs to them. Default 3 (ours: about the last block and the head of a residual network, as in the code).
        learning_rate: .01 (Kurmanji et al. 2023, code).
        epochs: Passes over the retain set. Default 10 (ibid.).
        batch_size: 256 (Jia et al. 2023, code).
        weight_decay: 0 (Kurmanji et al. 2023, code), with SGD and momentum .9.
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Goel et al. 2022 (arXiv 2201.06640), CF-k"
    maturity: ClassVar = Maturity.STABLE

    layers: int = 3
    learning_rate: float = 0.01
    epochs: float = 10
    batch_size: int = 256
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "layers", "batch_size")
        require_positive(self, "learning_rate", "epochs")
        require_at_least(self, 0, "weight_decay")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train the last layers of a copy."""
        model = run.copy(problem.model)
        freeze_all_but(model, last_layers(problem, run, model, self.layers))
        term = Term(cast(MapDataset, problem.retain), problem.task.losses, batch_size=self.batch_size)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9, weight_decay=self.weight_decay)
        run.train("fine-tune", model, [term], optimizer, epochs=self.epochs)
        return model.requires_grad_(True).eval()
