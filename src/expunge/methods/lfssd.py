"""LFSSD: selective synaptic dampening that reads no label and no loss."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.methods._dampening import dampen, importances, warn_if_nothing
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Batch, Classification
from expunge.training import Run


@dataclass(frozen=True)
class LFSSD(Method):
    """Dampen weights by how far the model's outputs, and not its loss, depend on them.

    As `SSD`, with the absolute gradient of the outputs' squared length in place of the squared gradient of the loss; so
    labels are not read.

    Args:
        selection: How much more a weight must matter to the forget set. Default 10 (code of SSD).
        dampening: 1 (ibid.).
        batch_size: 64 (ibid.); the absolute value is taken of the mean gradient of a batch.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Foster et al. 2024, Loss-Free Machine Unlearning (arXiv 2402.19308)"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    selection: float = 10.0
    dampening: float = 1.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "selection", "dampening")
        require_whole(self, "batch_size")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Measure, then dampen a copy of the model."""
        task = cast(Classification, problem.task)

        def squared_length(model: nn.Module, batch: Batch) -> Tensor:
            return task.outputs(model, batch).square().sum(1)

        forget, everything = importances(problem, run, squared_length, torch.abs, self.batch_size)
        model = run.copy(problem.model)
        share = dampen(model, forget, everything, selection=self.selection, dampening=self.dampening)
        warn_if_nothing(run, share, self.selection)
        return model.eval()
