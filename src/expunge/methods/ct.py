"""CT: turn every convolution kernel on its diagonal, and learn to see again from the retain set."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import ModelError
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term


@dataclass(frozen=True)
class CT(Method):
    """Convolution transpose: exchange height and width of all kernels, then fine-tune on the retain set.

    No forget example is read. Published for random examples; nothing restricts it to them. It needs kernels of more
    than one pixel, and such as are square; others are left as they are.

    Args:
        learning_rate: Of SGD with momentum .9 and a cosine schedule. Default .001 (code).
        epochs: Passes over the retain set. Default 3 (code).
        batch_size: 64 (code).
        weight_decay: 5e-4 (code).
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Cadet et al. 2024, Deep Unlearn (arXiv 2410.01276), of a NeurIPS 2023 challenge entry"
    maturity: ClassVar = Maturity.STABLE

    learning_rate: float = 0.001
    epochs: float = 3
    batch_size: int = 64
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "epochs")
        require_whole(self, "batch_size")
        require_at_least(self, 0, "weight_decay")

    def require(self, problem: Problem) -> None:
        """Raise where something is missing, or no kernel can be turned."""
        super().require(problem)
        if not _square_kernels(problem.model):
            raise ModelError(
                f"CT turns square convolution kernels of more than one pixel, of which {type(problem.model).__name__} "
                "has none; take EUK, or another method that resets weights"
            )

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Turn the kernels of a copy and train it."""
        model = run.copy(problem.model)
        with torch.no_grad():
            for weight in _square_kernels(model):
                weight.copy_(weight.transpose(2, 3).clone())
        run.train(
            "fine-tune",
            model,
            [Term(cast(MapDataset, problem.retain), problem.task.losses, batch_size=self.batch_size)],
            Optimizer(
                self.learning_rate,
                Algorithm.SGD,
                momentum=0.9,
                weight_decay=self.weight_decay,
                schedule=Schedule.COSINE,
            ),
            epochs=self.epochs,
        )
        return model.eval()


def _square_kernels(model: nn.Module) -> list[Tensor]:
    """Each once, for a kernel that two layers share would be turned back."""
    kernels = dict.fromkeys(module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    return [weight for weight in kernels if weight.shape[2] == weight.shape[3] > 1]
