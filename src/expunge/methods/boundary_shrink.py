"""Boundary Shrink: give each forget example to the class across the nearest border."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import ForgetSetError
from expunge.methods._labels import given_labels
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Term
from expunge.training.batches import in_order


@dataclass(frozen=True)
class BoundaryShrink(Method):
    """Teach each example of a forgotten class the class that a small step up its loss leads to.

    The step is bound · sign(∂ loss / ∂ input), in the unit of the inputs; the class is the likeliest of those that are
    not to be forgotten. In public code it may be the forgotten class itself, where the step does not cross a border,
    which is then taught once more. Only the forget set is read, so BatchNorm keeps its statistics. Defined for whole
    classes only.

    Args:
        bound: .1 (code).
        learning_rate: Of SGD with momentum .9. Default 1e-5 (code).
        epochs: Passes over the forget set. Default 10 (code).
        batch_size: 64 (code).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.CLASSES})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Chen et al. 2023 (arXiv 2303.11570), section 3.2"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    bound: float = 0.1
    learning_rate: float = 1e-5
    epochs: float = 10
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "bound", "learning_rate", "epochs")
        require_whole(self, "batch_size")

    def require(self, problem: Problem) -> None:
        """Raise where something is missing, or no class is left to give examples to."""
        super().require(problem)
        task = cast(Classification, problem.task)
        if len(set(problem.classes)) >= task.classes:
            raise ForgetSetError("BoundaryShrink gives examples to other classes, and all are to be forgotten")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Find the neighbours by the original, then train a copy on them."""
        task, forget = cast(Classification, problem.task), cast(MapDataset, problem.forget)
        labels = self._neighbours(problem, run, task)
        model = run.copy(problem.model)
        term = Term(forget, given_labels(task), batch_size=self.batch_size, reference=labels)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9)
        run.train("shrink", model, [term], optimizer, epochs=self.epochs, batch_statistics=False)
        return model.eval()

    def _neighbours(self, problem: Problem, run: Run, task: Classification) -> Tensor:
        """The class across the nearest border, for each forget example: (examples,) int64."""
        original, found = run.frozen(problem.model), list[Tensor]()
        size = min(self.batch_size, run.execution.micro_batch_size or self.batch_size)
        for batch in in_order(task, cast(MapDataset, problem.forget), size):
            moved = run.to_device(batch)
            inputs = moved["inputs"].detach().requires_grad_(True)
            loss = task.losses(original, {**moved, "inputs": inputs}).sum()
            (slope,) = torch.autograd.grad(loss, inputs)
            with torch.no_grad():
                logits = task.outputs(original, {**moved, "inputs": inputs + self.bound * slope.sign()})
                logits[:, list(problem.classes)] = -torch.inf
            found.append(logits.argmax(1).cpu())
        return torch.cat(found)
