"""Boundary Expand: send the forgotten classes to a class of their own, and take that away."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.methods._labels import given_labels
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Term, seed_globals


@dataclass(frozen=True)
class BoundaryExpand(Method):
    """Train the forget set towards one class more than there is, and cut that class off the head again.

    Only the forget set is read, so BatchNorm keeps its statistics. Defined for whole classes only.

    Args:
        learning_rate: Of SGD with momentum .9. Default 1e-5 (code).
        epochs: Passes over the forget set. Default 10 (code).
        batch_size: 64 (code).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.CLASSES})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Chen et al. 2023 (arXiv 2303.11570), section 3.3"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    learning_rate: float = 1e-5
    epochs: float = 10
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "epochs")
        require_whole(self, "batch_size")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Widen the head of a copy, train, and make it narrow again."""
        task, forget = cast(Classification, problem.task), cast(MapDataset, problem.forget)
        model = run.copy(problem.model)
        head = task.head_of(model)
        name = next(name for name, module in model.named_modules() if module is head)
        seed_globals(run.seed, "shadow class")
        wider = replace(task, classes=task.classes + 1, names=None, head=name)
        holder = _Holder(model)
        holder.put(name, _with_rows(head, task.classes + 1))
        shadow = torch.full((len(forget),), task.classes)
        term = Term(forget, given_labels(wider), batch_size=self.batch_size, reference=shadow)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9)
        run.train("expand", holder.model, [term], optimizer, epochs=self.epochs, batch_statistics=False)
        holder.put(name, _with_rows(wider.head_of(holder.model), task.classes))
        return holder.model.eval()


class _Holder:
    """A model of which modules are replaced, also where the model is that module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def put(self, name: str, module: nn.Module) -> None:
        if name:
            self.model.set_submodule(name, module)
        else:
            self.model = module


def _with_rows(head: nn.Linear | nn.Conv2d, rows: int) -> nn.Linear | nn.Conv2d:
    """A layer of the same kind with so many outputs: those that there are, and fresh ones."""
    other = copy.deepcopy(head)
    other.weight = _resized(head.weight, rows)
    if head.bias is not None:
        other.bias = _resized(head.bias, rows, head.weight[0].numel())
    if isinstance(other, nn.Linear):
        other.out_features = rows
    else:
        other.out_channels = rows
    return other


def _resized(weight: Tensor, rows: int, inputs: int | None = None) -> nn.Parameter:
    """With so many rows, of which fresh ones are uniform within 1 / √inputs, as torch draws them."""
    bound = (inputs or weight[0].numel()) ** -0.5
    fresh = torch.empty((rows, *weight.shape[1:])).uniform_(-bound, bound).to(weight)
    both = min(rows, len(weight))
    fresh[:both] = weight.detach()[:both]
    return nn.Parameter(fresh)
