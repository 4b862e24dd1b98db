"""Noise and distil: damage all weights, and learn from the original what it says of the retain set."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import SettingError
from expunge.methods._distillation import logits_of, softened_divergence
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Batch, Classification
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term


@dataclass(frozen=True)
class NoiseAndDistil(Method):
    """Replace θ by (1 - noise) θ + noise · noise_scale · N, then distil the original on the retain set.

    N is Xavier-uniform for matrices and kernels and nought for vectors (UNDO). The teacher is the original with the
    forgotten classes ruled out, where whole classes are named; for single examples it is the original as it is, which
    is asked about retained examples alone. The original's own suppression by another method, which UNDO starts with, is
    left out: for a classifier it is that ruling out. No forget example is read.

    Args:
        noise: alpha, from 0 to 1: how much is damaged. Default .3 (ours; the paper's figures have .2 to .8).
        noise_scale: beta. Default .1 (code).
        temperature: Of the distillation. Default 1 (code).
        learning_rate: Peak of Adam with a one-cycle schedule. Default .001 (ours).
        epochs: Passes over the retain set. Default 5 (ours; the code stops when the teacher is nearly reached).
        batch_size: 128 (ours).
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Lee et al. 2025, Distillation Robustifies Unlearning (arXiv 2506.06278), UNDO"
    maturity: ClassVar = Maturity.EXPERIMENTAL
    tasks: ClassVar = (Classification,)

    noise: float = 0.3
    noise_scale: float = 0.1
    temperature: float = 1.0
    learning_rate: float = 1e-3
    epochs: float = 5
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "noise", "noise_scale", "temperature", "learning_rate", "epochs")
        require_whole(self, "batch_size")
        if self.noise > 1:
            raise SettingError(f"noise must be at most 1, not {self.noise!r}")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Ask the original once, then damage a copy and train it."""
        task, retain = cast(Classification, problem.task), cast(MapDataset, problem.retain)
        taught = logits_of(run, problem.model, task, retain)
        taught[:, list(problem.classes)] = -torch.inf

        def divergence(model: nn.Module, batch: Batch, teacher: Tensor) -> Tensor:
            return softened_divergence(task.outputs(model, batch), teacher, self.temperature)

        model = run.copy(problem.model)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                drawn = _xavier(weight, run.generator("noise", name))
                weight.mul_(1 - self.noise).add_(self.noise * self.noise_scale * drawn)
        term = Term(retain, divergence, batch_size=self.batch_size, reference=taught)
        optimizer = Optimizer(self.learning_rate, Algorithm.ADAM, schedule=Schedule.ONE_CYCLE)
        run.train("distil", model, [term], optimizer, epochs=self.epochs)
        return model.eval()


def _xavier(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Glorot and Bengio 2010, uniform; nought for a vector."""
    noise = torch.zeros(weight.shape)
    if weight.ndim > 1:
        nn.init.xavier_uniform_(noise, generator=generator)
    return noise.to(weight)
