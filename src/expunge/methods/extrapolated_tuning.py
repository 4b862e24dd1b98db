"""Extrapolated tuning: tune on retained data, and go on in that direction as far as it does no harm."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.methods._extrapolation import errors_of_weights, largest_harmless, left_out, with_weights
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term


@dataclass(frozen=True)
class ExtrapolatedTuning(Method):
    """Set the weights to p + c (q - p): p are those of the original, q those after tuning it on the retain set.

    What fades while a model is tuned without the forget set fades further in the same direction. c is the largest of 1,
    1.25, 1.5, 2, 2.5, 3 and 4 at which the mean loss of retained examples that were left out of the tuning is no higher
    than the original's; no retrained model is needed to find it. The record holds it.

    Args:
        extrapolation: c, if it is not to be found.
        learning_rate: The peak rate. Default ours, as all of these.
        epochs: Passes over the retain set.
        batch_size: Examples a step.
        algorithm: The optimiser.
        weight_decay: Its weight decay.
        clip_norm: Largest gradient norm.
        schedule: Of the learning rate.
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "ours; the direction of Ilharco et al. 2023 (arXiv 2212.04089), from retained data"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    extrapolation: float | None = None
    learning_rate: float = 3e-3
    epochs: float = 6
    batch_size: int = 128
    algorithm: Algorithm = Algorithm.ADAMW
    weight_decay: float = 0.0
    clip_norm: float | None = 3.0
    schedule: Schedule = Schedule.ONE_CYCLE

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "extrapolation", "learning_rate", "epochs", "clip_norm")
        require_at_least(self, 0, "weight_decay")
        require_whole(self, "batch_size")
        require_one_of(self, "algorithm", Algorithm)
        require_one_of(self, "schedule", Schedule)

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Tune a copy of the model, find how far to go, and go there."""
        retain = cast(MapDataset, problem.retain)
        tuning, unseen = left_out(retain, run) if self.extrapolation is None else (retain, retain)
        model = run.copy(problem.model)
        optimizer = Optimizer(
            self.learning_rate,
            self.algorithm,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
        )
        term = Term(tuning, problem.task.losses, batch_size=self.batch_size)
        record = run.train("tune", model, [term], optimizer, epochs=self.epochs)
        factor = self.extrapolation
        if factor is None:
            factor = largest_harmless(errors_of_weights(run, unseen, run.frozen(problem.model), model))
        record.measured["extrapolation"] = factor
        return with_weights(model, run.frozen(problem.model), factor).eval()
