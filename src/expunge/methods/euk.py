"""EU-k: draw the last layers anew and train them on the retain set, holding the others."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.methods._initialise import reinitialise
from expunge.methods._last_layers import freeze_all_but, last_layers
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class EUK(Method):
    """Exact unlearning of the last k layers: they are retrained from scratch.

    Exact for those layers alone: earlier ones keep what they learned of the forget set, to the bit, also statistics of
    their BatchNorm layers, which move in public code. No forget example is read. It works for whole classes, parts of
    them and single examples.

    Args:
        layers: k, layers with weight matrices or kernels, counted from the end; normalisation after the first of them
            is drawn anew too. Default 3 (ours: about the last block and the head of a residual network, as in the
            code).
        learning_rate: .01 (Kurmanji et al. 2023, code).
        epochs: Passes over the retain set. Default 10 (ibid.).
        batch_size: 256 (Jia et al. 2023, code).
        weight_decay: 0 (Kurmanji et al. 2023, code), with SGD and momentum .9.
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Goel et al. 2022 (arXiv 2201.06640), EU-k"
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
        """Draw the last layers of a copy anew and train them."""
        model = run.copy(problem.model)
        chosen = last_layers(problem, run, model, self.layers)
        reinitialise(run, chosen)
        freeze_all_but(model, chosen)
        term = Term(cast(MapDataset, problem.retain), problem.task.losses, batch_size=self.batch_size)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9, weight_decay=self.weight_decay)
        run.train("retrain", model, [term], optimizer, epochs=self.epochs)
        return model.requires_grad_(True).eval()
