"""EU-k: draw the last layers anew and train them on the retain set, holding the others."""

from dataclasses import dataclass
from typing import ClassVar

from expunge.methods._initialise import reinitialise
from expunge.methods._last_layers import LastLayersMethod, Layers
from expunge.methods.base import Maturity
from expunge.training import Run


@dataclass(frozen=True)
class EUK(LastLayersMethod):
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

    paper: ClassVar = "Goel et al. 2022 (arXiv 2201.06640), EU-k"
    maturity: ClassVar = Maturity.STABLE

    def prepare(self, run: Run, chosen: Layers) -> str:
        """Draw the layers anew."""
        reinitialise(run, chosen)
        return "retrain"
