"""CF-k: fine-tune the last layers on the retain set and hold the others."""

from dataclasses import dataclass
from typing import ClassVar

from expunge.methods._last_layers import LastLayersMethod, Layers
from expunge.methods.base import Maturity
from expunge.training import Run


@dataclass(frozen=True)
class CFK(LastLayersMethod):
    """Catastrophic forgetting in the last k layers: they are trained on, the others are not.

    What earlier layers learned of the forget set stays, to the bit, also statistics of their BatchNorm layers, which
    move in public code. No forget example is read. It works for whole classes, parts of them and single examples.
    Settings are those of `EUK`: `layers`, `learning_rate`, `epochs`, `batch_size`, `weight_decay`.
    """

    paper: ClassVar = "Goel et al. 2022 (arXiv 2201.06640), CF-k"
    maturity: ClassVar = Maturity.STABLE

    def prepare(self, run: Run, chosen: Layers) -> str:
        """Leave the layers as they are."""
        return "fine-tune"
