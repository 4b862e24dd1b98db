"""SelectiveReset: draw anew the weights that are most specific to the forget set, and learn the rest again."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.errors import ModelError, SettingError
from expunge.methods._budget import FORWARD, passes_within
from expunge.methods._distillation import logits_of, softened_divergence
from expunge.methods._initialise import scrambled
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import (
    require_at_least,
    require_below,
    require_between,
    require_one_of,
    require_positive,
    require_whole,
)
from expunge.tasks import Batch, Classification
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term, mean_by_batch, mean_by_example


@dataclass(frozen=True)
class SelectiveReset(Method):
    """Re-initialise the weights that matter most to the forget set beside the retain set, then train on the latter.

    A weight is as specific as the ratio of its mean squared gradient on forget examples to that on retained ones. The
    share of weights with the highest ratio, over all layers together, is drawn anew from each layer's own
    initialisation. The model is then trained on the retain set by SGD with a one-cycle schedule: partly on labels,
    partly on what the original says of the same examples, which is asked once. Where whole classes are named they are
    ruled out of what it says; of retained examples it is asked otherwise as it is.

    Args:
        epochs: Passes over the retain set. The more there are, the more can be reset.
        budget: Share of a retrain that everything may cost, such as .2, instead of `epochs`; passes follow from those
            of the problem's `Supervised` recipe, less what measuring and asking the original cost.
        share: Of the weights that are reset; by default a tenth for each 50 steps, at most .3.
        estimate: Of a weight's importance: squared gradients of single `example`s, or of `batch`es.
        measured_on: Most examples of each set by which it is measured.
        distilled: Weight of what the original says; that of labels is the rest to 1.
        temperature: Of the distillation.
        learning_rate: Peak rate.
        momentum: Of SGD, in Nesterov's form.
        weight_decay: Of weights and biases alike.
        batch_size: Examples a step.

    The preset `short` is for budgets of which asking the original would take a large part, a pass over the retain set
    or less: labels alone, half the rate, and a fifth of the weights.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "ours; importance as in Foster et al. 2024 (arXiv 2308.07707)"
    maturity: ClassVar = Maturity.EXPERIMENTAL
    tasks: ClassVar = (Classification,)
    presets: ClassVar = MappingProxyType(
        {"short": {"epochs": 1, "share": 0.2, "measured_on": 128, "distilled": 0.0, "learning_rate": 0.05}}
    )

    epochs: float = 2
    budget: float | None = None
    share: float | None = None
    estimate: Literal["batch", "example"] = "batch"
    measured_on: int = 256
    distilled: float = 0.5
    temperature: float = 2.0
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "epochs", "temperature", "learning_rate", "momentum")
        require_between(self, 0, 1, "budget", "share")
        require_below(self, 1, "momentum")
        require_at_least(self, 0, "distilled", "weight_decay")
        require_whole(self, "measured_on", "batch_size")
        require_one_of(self, "estimate", ("batch", "example"))
        if self.distilled > 1:
            raise SettingError(f"distilled must be at most 1, not {self.distilled!r}")

    def require(self, problem: Problem) -> None:
        """Raise where something is missing, or the budget cannot be met."""
        super().require(problem)
        self.passes(problem)

    def passes(self, problem: Problem) -> float:
        """Passes over the retain set that train the model."""
        if self.budget is None:
            return self.epochs
        forget, retain = len(cast(MapDataset, problem.forget)), len(cast(MapDataset, problem.retain))
        measured = min(self.measured_on, forget) + min(self.measured_on, retain)
        return passes_within(problem, self.budget, FORWARD * (self.distilled > 0) + measured / retain)

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Measure, reset a copy of the model, and train it."""
        model, term, epochs = run.copy(problem.model), self._objective(problem, run), self.passes(problem)
        share = self.share or share_for(epochs * term.steps_per_epoch)
        reset = most_specific(self.specificity(problem, run), share)
        fresh = dict(scrambled(run, problem.model).named_parameters())
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in reset:
                    weight.copy_(torch.where(reset[name], fresh[name], weight))
        optimizer = Optimizer(
            self.learning_rate,
            Algorithm.SGD,
            momentum=self.momentum,
            nesterov=True,
            weight_decay=self.weight_decay,
            schedule=Schedule.ONE_CYCLE,
        )
        record = run.train("learn again", model, [term], optimizer, epochs=epochs)
        record.measured["reset share"] = share
        return model.eval()

    def _objective(self, problem: Problem, run: Run) -> Term:
        """Labels and what the original says, each in its part; it is asked here, unless nothing depends on it."""
        task, retain = cast(Classification, problem.task), cast(MapDataset, problem.retain)
        if self.distilled == 0:
            return Term(retain, task.losses, batch_size=self.batch_size)
        taught = logits_of(run, problem.model, task, retain)
        taught[:, list(problem.classes)] = -torch.inf

        def objective(model: nn.Module, batch: Batch, teacher: Tensor) -> Tensor:
            logits = task.outputs(model, batch)
            labels = F.cross_entropy(logits, batch["labels"], reduction="none")
            told = softened_divergence(logits, teacher, self.temperature)
            return (1 - self.distilled) * labels + self.distilled * told

        return Term(retain, objective, batch_size=self.batch_size, reference=taught)

    def specificity(self, problem: Problem, run: Run) -> dict[str, Tensor]:
        """Forget/retain ratio of mean squared gradients, for each weight of a matrix or a kernel."""
        found: list[dict[str, Tensor]] = []
        sets = {"forget": cast(MapDataset, problem.forget), "retain": cast(MapDataset, problem.retain)}
        size = min(_BATCH, *map(len, sets.values()))
        for name, dataset in sets.items():
            phase, losses = f"importance-{name}", problem.task.losses
            drawn = subset(dataset, torch.randperm(len(dataset), generator=run.generator(phase))[: self.measured_on])
            if self.estimate == "example":
                found.append(mean_by_example(run, phase, problem.model, drawn, [losses]))
            else:
                found.append(mean_by_batch(run, phase, problem.model, drawn, losses, torch.square, size))
        forget, retain = found
        names = [name for name, weight in problem.model.named_parameters() if weight.ndim > 1]
        if not names:
            raise ModelError(f"{type(problem.model).__name__} has no matrix or kernel whose weights could be reset")
        return {name: forget[name] / retain[name].clamp(min=torch.finfo(retain[name].dtype).tiny) for name in names}


def share_for(steps: float) -> float:
    """The share of weights to reset where so many steps of training follow: a tenth for each 50, at most .3.

    Ours, read off `benchmarks/results/removal_development-quick.json`.
    """
    return min(_LARGEST_SHARE, steps * _SHARE_PER_STEP)


def most_specific(ratios: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the weights whose ratio is among the highest of all tensors together; at least one weight."""
    everything = torch.cat([ratio.flatten() for ratio in ratios.values()])
    chosen = torch.zeros(len(everything), dtype=torch.bool, device=everything.device)
    chosen[everything.topk(max(1, round(share * len(everything)))).indices] = True
    parts = chosen.split([ratio.numel() for ratio in ratios.values()])
    return {name: part.reshape(ratio.shape) for (name, ratio), part in zip(ratios.items(), parts, strict=True)}


_BATCH = 16
_LARGEST_SHARE, _SHARE_PER_STEP = 0.3, 0.1 / 50
