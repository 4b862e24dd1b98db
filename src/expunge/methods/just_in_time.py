"""Just-in-time unlearning: make the model flat around the forget examples, with nothing else at hand."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Batch, Classification
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class JustInTime(Method):
    """Lower the slope of the model around each forget example, from the forget examples alone.

    Each example x is disturbed `copies` times by Gaussian noise ξ, and the mean of ‖f(x) - f(x + ξ)‖/‖ξ‖ over logits f
    is made small: an example that was memorised stands on a slope of its own. Nothing bounds what this does to the
    rest of the model, so it is stopped early by `epochs`; more of it makes the whole model constant.

    Args:
        copies: Disturbed copies of an example. Default 25 (code).
        noise: Standard deviation of ξ, in the unit of the inputs. Default .1 (code; its scripts use .01 to .8).
        learning_rate: Of SGD. Default .01 (code; its scripts use 3e-4 to 1.5).
        epochs: Passes over the forget set. Default 1 (code).
        batch_size: Examples a step. Default 128 (code).
    """

    needs: ClassVar = frozenset({Need.FORGET})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = (
        "Foster et al. 2024, Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization (2402.01401)"
    )
    maturity: ClassVar = Maturity.EXPERIMENTAL
    tasks: ClassVar = (Classification,)

    copies: int = 25
    noise: float = 0.1
    learning_rate: float = 0.01
    epochs: float = 1
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "copies", "batch_size")
        require_positive(self, "noise", "learning_rate", "epochs")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Smooth a copy of the model, in evaluation mode: BatchNorm is not to learn the forget set once more."""
        task = cast(Classification, problem.task)

        def slope(model: nn.Module, batch: Batch) -> Tensor:
            return slopes(model, task, batch["inputs"], self.copies, self.noise)

        model = run.copy(problem.model)
        term = Term(cast(MapDataset, problem.forget), slope, batch_size=self.batch_size)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD)
        run.train("smooth", model, [term], optimizer, epochs=self.epochs, batch_statistics=False)
        return model.eval()


def slopes(model: nn.Module, task: Classification, inputs: Tensor, copies: int, noise: float) -> Tensor:
    """Mean of ‖f(x) - f(x + ξ)‖/‖ξ‖ over disturbed copies of each input: (batch,)."""
    many = inputs.repeat_interleave(copies, dim=0)
    disturbance = noise * torch.randn_like(many)
    change = task.outputs(model, {"inputs": many + disturbance}) - task.outputs(
        model, {"inputs": inputs}
    ).repeat_interleave(copies, dim=0)
    # the root of a sum of squares has no gradient where a model is constant
    lengths = (change.square().sum(1) + torch.finfo(change.dtype).tiny).sqrt()
    return (lengths / disturbance.flatten(1).norm(dim=1)).reshape(len(inputs), copies).mean(1)
