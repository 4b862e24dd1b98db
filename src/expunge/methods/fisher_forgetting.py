"""Fisher forgetting: noise on each weight, the more the less the retain set needs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive
from expunge.tasks import Batch, Classification
from expunge.training import Objective, Run, mean_by_example


@dataclass(frozen=True)
class FisherForgetting(Method):
    """Add Gaussian noise with variance noise / F to each weight, F its Fisher information on the retain set.

    F is the mean over retained examples of Σ_y p(y | x) (∂ log p(y | x) / ∂θ)². As in the code, variances are averaged
    over the inputs of a unit, 1 / F is at most `most` (a tenth of that in the head), and the head and vectors such as
    biases get ten times as much; where whole classes are named, the head's weights of these are drawn around nought.
    The head is the one that the task names, and not whatever has as many rows as there are classes. Nothing is trained
    and the forget set is not read. Published for whole classes and for single examples. F takes as many passes over
    the retain set as there are classes.

    Args:
        noise: alpha. Default 1e-6 (notebook).
        most: Largest 1 / F. Default 1e3 (notebook).
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Golatkar et al. 2020 (arXiv 1911.04933), section 5"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    noise: float = 1e-6
    most: float = 1e3

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "noise", "most")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Measure the information, then disturb a copy of the model."""
        task = cast(Classification, problem.task)
        retain = cast(MapDataset, problem.retain)
        objectives = [_likelihood(task, label) for label in range(task.classes)]
        information = mean_by_example(run, "information", problem.model, retain, objectives)
        model = run.copy(problem.model)
        head = set(task.head_of(model).parameters())
        variances = self._variances(model, information, head)
        forgotten = torch.tensor(problem.classes, dtype=torch.long, device=run.device)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight in head:
                    weight[forgotten] = 0
                    variances[name][forgotten] = _CLASS_VARIANCE
                drawn = torch.randn(weight.shape, generator=run.generator("noise", name)).to(weight)
                weight.add_(variances[name].sqrt() * drawn)
        return model.eval()

    def _variances(
        self, model: nn.Module, information: Mapping[str, Tensor], head: set[nn.Parameter]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, weight in model.named_parameters():
            is_head = weight in head
            variance = self.noise * (1 / (information[name] + _LEAST)).clamp(max=self.most * (0.1 if is_head else 1))
            if weight.ndim > 1:
                variance = variance.mean(1, keepdim=True).expand_as(weight).clone()
            found[name] = variance * (10 if is_head or weight.ndim == 1 else 1)
        return found


_LEAST = 1e-8
_CLASS_VARIANCE = 1e-3  # the notebook sets 1e-4, and then all of the head tenfold


def _likelihood(task: Classification, label: int) -> Objective:
    """√p(y | x) · log p(y | x) with the root held fixed, whose squared gradient is p(y | x) (∂ log p(y | x))²."""

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        log_probability = task.outputs(model, batch).log_softmax(1)[:, label]
        return (log_probability.detach() / 2).exp() * log_probability

    return objective
