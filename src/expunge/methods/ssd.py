"""SSD: dampen the weights that matter more to the forget set than to all data."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from expunge.methods._dampening import dampen, importances, warn_if_nothing
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_one_of, require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Run


@dataclass(frozen=True)
class SSD(Method):
    """Selective synaptic dampening: no training, but a pass over all data to measure what matters.

    A weight whose importance to the forget set is more than `selection` times that to all data is multiplied by
    min(dampening · I_all / I_forget, 1). Importance is the squared gradient of the loss. Published for whole classes,
    sub-classes and random examples; on random examples of the training distribution few weights stand out or none,
    which is then said in a warning.

    Args:
        selection: How much more a weight must matter, alpha. Default 10 (code; its scripts scale it with the model).
        dampening: lambda. Default 1 (code).
        batch_size: 64 (code).
        estimate: `batch` squares the mean gradient of batches, as the code does and the defaults suppose; `example`
            squares each example's own, the diagonal of the empirical Fisher information that the paper speaks of. In
            that no weight can matter more than (all examples / forget examples) times as much, so `selection` must be
            below. Batches are of the same size for both sets, also where the forget set is smaller than one.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Foster et al. 2024 (arXiv 2308.07707), section 4"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    selection: float = 10.0
    dampening: float = 1.0
    batch_size: int = 64
    estimate: Literal["batch", "example"] = "batch"

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "selection", "dampening")
        require_whole(self, "batch_size")
        require_one_of(self, "estimate", ("batch", "example"))

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Measure, then dampen a copy of the model."""
        size = self.batch_size if self.estimate == "batch" else None
        forget, everything = importances(problem, run, problem.task.losses, torch.square, size)
        model = run.copy(problem.model)
        share = dampen(model, forget, everything, selection=self.selection, dampening=self.dampening)
        warn_if_nothing(run, share, self.selection)
        return model.eval()
