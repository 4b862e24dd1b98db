"""How fast a model learns the forget set again from a few of its examples.

The plain test mostly measures the last layer: a large negative bias on a forgotten class passes it. So the same is
done once more after the last layer has been refitted on those same examples, which shows what the features hold. And
what was only suppressed may come back by training on retained data alone; that is tried in both forms too.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.data import MapDataset, subset
from expunge.errors import SettingError
from expunge.settings import require_positive, require_whole
from expunge.training import Optimizer, Run, Term, over_batches
from expunge.training.batches import in_order
from expunge.training.evaluation import EVALUATION_BATCH
from expunge.training.seeds import generator


@dataclass(frozen=True)
class Form:
    """One form of the test.

    Args:
        name: As evidence and report call it.
        from_forget: Whether forget examples are among those that are trained on.
        refit: Whether the last layer is refitted first, on the same examples.
    """

    name: str
    from_forget: bool
    refit: bool


PLAIN = Form("relearning", from_forget=True, refit=False)
REFITTED = Form("relearning, head refitted", from_forget=True, refit=True)
RETAINED = Form("relearning from retained data", from_forget=False, refit=False)
RETAINED_REFITTED = Form("relearning from retained data, head refitted", from_forget=False, refit=True)


@dataclass(frozen=True)
class Relearning:
    """Settings of the relearning test.

    Args:
        forget_examples: Examples of the forget set that are learned again; at most half of it.
        retain_examples: Retained examples that are trained on with them.
        steps: Optimiser steps at which quality is measured on the other forget examples.
        learning_rate: Of Adam. Default 1e-3 (Chundawat et al. 2023, code of the anamnesis index).
        batch_size: Examples a step.
        measured_on: At most so many of the other forget examples.
        retained_only: Also relearn from retained examples alone.
    """

    forget_examples: int = 100
    retain_examples: int = 900
    steps: tuple[int, ...] = (0, 5, 10, 20, 40)
    learning_rate: float = 1e-3
    batch_size: int = 128
    measured_on: int = 1000
    retained_only: bool = False

    def __post_init__(self) -> None:
        """Check the ranges, and that the steps increase."""
        require_whole(self, "forget_examples", "retain_examples", "batch_size", "measured_on")
        require_positive(self, "learning_rate")
        if len(self.steps) < 2 or self.steps[0] != 0 or list(self.steps) != sorted(set(self.steps)):
            raise SettingError(f"the steps of relearning must start at 0 and increase, not {self.steps}")

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms that are carried out."""
        return (PLAIN, REFITTED, RETAINED, RETAINED_REFITTED) if self.retained_only else (PLAIN, REFITTED)


@dataclass(frozen=True)
class RelearningTest:
    """The test with its examples drawn, the same for every model."""

    settings: Relearning
    run: Run
    learned: tuple[MapDataset, MapDataset]  # of the forget set, of the retain set
    measured: MapDataset

    @classmethod
    def prepare(cls, settings: Relearning, run: Run, forget: MapDataset, retain: MapDataset) -> "RelearningTest":
        """Draw the examples to learn from and those to measure on.

        Raises:
            SettingError: The forget set has a single example.
        """
        if len(forget) < 2:
            raise SettingError("relearning needs at least 2 forget examples: one to learn and one to measure on")
        order = torch.randperm(len(forget), generator=generator(run.seed, "relearned"))
        count = min(settings.forget_examples, len(forget) // 2)
        kept = torch.randperm(len(retain), generator=generator(run.seed, "relearned with"))[: settings.retain_examples]
        quiet = Run(run.task, run.seed, replace(run.execution, progress=False))
        learned = subset(forget, order[:count].sort().values), subset(retain, kept.sort().values)
        return cls(settings, quiet, learned, subset(forget, order[count:][: settings.measured_on].sort().values))

    def curves(self, model: nn.Module) -> dict[str, list[NDArray[np.float64]]]:
        """Quality of every measured example at each step, by the name of the form."""
        return {form.name: self._curve(model, form) for form in self.settings.forms}

    def quality(self, model: nn.Module) -> NDArray[np.float64]:
        """Headline quality of a model on the measured examples: (examples,)."""
        task = self.run.task
        pieces = over_batches(self.run, model, self.measured, lambda m, b: next(iter(task.quality(m, b).values())))
        return torch.cat(pieces).double().numpy()

    def _curve(self, model: nn.Module, form: Form) -> list[NDArray[np.float64]]:
        student = self.run.copy(model)
        trained_on = self.learned if form.from_forget else self.learned[1:]
        if form.refit:
            batches = (batch for part in trained_on for batch in in_order(self.run.task, part, EVALUATION_BATCH))
            self.run.task.refit_head(student, map(self.run.to_device, batches))
        points = [self.quality(student)]

        def watch(step: int) -> None:
            if step in self.settings.steps:
                points.append(self.quality(student))

        term = Term(trained_on, self.run.task.losses, batch_size=self.settings.batch_size)
        optimizer = Optimizer(self.settings.learning_rate)
        self.run.train("relearn", student, [term], optimizer, steps=self.settings.steps[-1], watch=watch)
        return points
