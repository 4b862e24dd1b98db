"""Fine-tuning on the retain set alone: the control for every method that also does something else."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.errors import SettingError
from expunge.methods._retained import balanced_subset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term


@dataclass(frozen=True)
class Stage:
    """A part of fine-tuning.

    Args:
        learning_rate: The peak rate.
        epochs: Passes over the retained examples.
        steps: Optimiser steps, instead of `epochs`.
        schedule: Of the learning rate within the stage.
    """

    learning_rate: float
    epochs: float = 1.0
    steps: int | None = None
    schedule: Schedule = Schedule.CONSTANT

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "epochs")
        require_whole(self, "steps")
        require_one_of(self, "schedule", Schedule)


@dataclass(frozen=True)
class FineTune(Method):
    """Continue training on retained data and let the rest fade.

    With the stages and the subset of another method it is that method's retain-only control.

    Args:
        stages: Learning rates and lengths, one after the other. Default: 10 epochs at .01 (Jia et al. 2023, code).
        algorithm: The optimiser. Default: SGD with momentum .9 (ibid.).
        weight_decay: 5e-4 (ibid.).
        batch_size: 256 (ibid.).
        retain_per_class: Use only so many retained examples of each class (classification only).
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Jia et al. 2023 (arXiv 2304.04934), baseline FT"
    maturity: ClassVar = Maturity.STABLE

    stages: tuple[Stage, ...] = (Stage(0.01, epochs=10),)
    algorithm: Algorithm = Algorithm.SGD
    weight_decay: float = 5e-4
    batch_size: int = 256
    retain_per_class: int | None = None

    def __post_init__(self) -> None:
        """Check that there is a stage, and the ranges."""
        if not self.stages:
            raise SettingError("stages is empty; give at least one, as in `stages=(Stage(0.01),)`")
        require_one_of(self, "algorithm", Algorithm)
        require_at_least(self, 0, "weight_decay")
        require_whole(self, "batch_size", "retain_per_class")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Run the stages on a copy of the model."""
        retain = cast(MapDataset, problem.retain)
        if self.retain_per_class is not None:
            retain = balanced_subset(problem.task, retain, self.retain_per_class, run.generator("retain subset"))
        model = run.copy(problem.model)
        for number, stage in enumerate(self.stages, start=1):
            run.train(
                "fine-tune" if len(self.stages) == 1 else f"fine-tune-{number}",
                model,
                [Term(retain, problem.task.losses, batch_size=self.batch_size)],
                Optimizer(
                    stage.learning_rate,
                    self.algorithm,
                    momentum=0.9,
                    weight_decay=self.weight_decay,
                    schedule=stage.schedule,
                ),
                steps=stage.steps,
                epochs=stage.epochs,
            )
        return model.eval()
