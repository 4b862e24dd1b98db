"""Extrapolate: tune on retained data, and go on in that direction as far as it does no harm."""

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, cast

import torch
from torch import nn

from expunge.data import MapDataset
from expunge.methods._budget import FORWARD, passes_within
from expunge.methods._extrapolation import (
    FACTORS,
    MOST_LEFT_OUT,
    SHARE_LEFT_OUT,
    extrapolated,
    largest_harmless,
    over_factors,
    parted,
)
from expunge.methods._normalisation import MOST_EXAMPLES, has_statistics
from expunge.methods.base import Maturity, Method, Need, Tier, require_need
from expunge.problem import Problem, Recipe
from expunge.settings import require_at_least, require_between, require_one_of, require_positive, require_whole
from expunge.training import (
    Algorithm,
    Execution,
    Optimizer,
    PhaseRecord,
    Run,
    Schedule,
    Term,
    over_batches,
    reproducible,
)


@dataclass(frozen=True)
class Extrapolate(Method):
    """Set the weights to p + c (q - p): p are those of the original, q those after tuning it on the retain set.

    What fades while a model is tuned without the forget set fades further in the same direction; no forget example is
    read. c is the largest of 1, 1.25, 1.5, 2, 2.5, 3 and 4 at which the mean loss on 500 examples that the tuning has
    not seen is no higher than the original's: of the holdout without the classes to forget and without labels that the
    forget set alone has, or, where there is no holdout, of a tenth of the retain set that is left out. No retrained
    model is needed to find it, and the record holds it. It can also be given, for instance by `calibrated`. Statistics
    of BatchNorm are measured anew on retained examples.

    Args:
        extrapolation: c, if it is not to be found.
        learning_rate: The peak rate. Default ours, as all of these.
        epochs: Passes over the retain set.
        budget: Share of a retrain that everything may cost, such as .2, instead of `epochs`; passes follow from those
            of the problem's `Supervised` recipe, less what finding c and measuring statistics anew cost.
        batch_size: Examples a step.
        algorithm: The optimiser.
        weight_decay: Its weight decay.
        clip_norm: Largest gradient norm; None for any.
        schedule: Of the learning rate.

    The defaults were chosen on image-to-image models. The preset `classifier` tunes as such models are mostly trained,
    by SGD at .1: on the development split it was nearer to retraining, and what it forgot came back more slowly. The
    preset `images` sets c to 2 for image-to-image models, where the rule found 1 in all runs but one: chosen on the
    development split of their benchmark, on digits. On its diffusion model 1 was nearer.
    """

    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "ours; the direction of Ilharco et al. 2023 (arXiv 2212.04089), from retained data"
    maturity: ClassVar = Maturity.EXPERIMENTAL
    presets: ClassVar = MappingProxyType(
        {
            "classifier": {"algorithm": Algorithm.SGD, "learning_rate": 0.1, "batch_size": 64, "epochs": 2},
            "images": {"extrapolation": 2.0},
        }
    )

    extrapolation: float | None = None
    learning_rate: float = 3e-3
    epochs: float = 6
    budget: float | None = None
    batch_size: int = 128
    algorithm: Algorithm = Algorithm.ADAMW
    weight_decay: float = 0.0
    clip_norm: float | None = 3.0
    schedule: Schedule = Schedule.ONE_CYCLE

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "extrapolation", "learning_rate", "epochs", "clip_norm")
        require_between(self, 0, 1, "budget")
        require_at_least(self, 0, "weight_decay")
        require_whole(self, "batch_size")
        require_one_of(self, "algorithm", Algorithm)
        require_one_of(self, "schedule", Schedule)

    def require(self, problem: Problem) -> None:
        """Raise where something is missing, or the budget cannot be met."""
        super().require(problem)
        self.passes(problem)

    def passes(self, problem: Problem) -> float:
        """Passes over the retain set that tune the model."""
        if self.budget is None:
            return self.epochs
        retain, holdout = cast(MapDataset, problem.retain), problem.holdout
        unseen = len(holdout) if holdout is not None else int(len(retain) * SHARE_LEFT_OUT)
        finding = self.extrapolation is None
        looked_at = min(unseen, MOST_LEFT_OUT) * (1 + len(FACTORS)) * finding
        remeasured = min(len(retain), MOST_EXAMPLES) * (len(FACTORS) if finding else 1) * has_statistics(problem.model)
        return passes_within(problem, self.budget, FORWARD * (looked_at + remeasured) / len(retain))

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Tune a copy of the model, find how far to go, and go there."""
        retain, original = cast(MapDataset, problem.retain), run.frozen(problem.model)
        tuning, unseen = parted(problem, run) if self.extrapolation is None else (retain, retain)
        model = run.copy(problem.model)
        record = self.tune(run, model, tuning, self.passes(problem))
        factor = self.extrapolation
        if factor is None:
            losses = over_factors(run, original, model, tuning, unseen, run.task.losses)
            factor = largest_harmless([float(torch.cat(each).double().mean()) for each in losses])
        record.measured["extrapolation"] = factor
        return extrapolated(run, original, model, factor, tuning).eval()

    def tune(self, run: Run, model: nn.Module, data: MapDataset, epochs: float) -> PhaseRecord:
        """Train a model in place for so many passes, as a phase of its own."""
        optimizer = Optimizer(
            self.learning_rate,
            self.algorithm,
            momentum=0.9 if self.algorithm is Algorithm.SGD else 0.0,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
        )
        term = Term(data, run.task.losses, batch_size=self.batch_size)
        return run.train("tune", model, [term], optimizer, epochs=epochs)


def calibrated(
    method: Extrapolate, rehearsal: Problem, *, seed: int = 0, execution: Execution | None = None
) -> Extrapolate:
    """The method with the extrapolation that came nearest to retraining in a rehearsal; to be used for later requests.

    One model is retrained by the rehearsal's recipe, the original is tuned as the method says, and of the factors 1,
    1.25, 1.5, 2, 2.5, 3 and 4 that one is taken at which outputs on what was left out diverge least from the retrained
    model's. That is a choice by one model on one left-out part: it says how far to go for requests of that kind, and
    promises nothing for others.

    Args:
        method: Its length, rate and so on; requests must use the same, as the result does.
        rehearsal: A problem whose `forget` are *retained* data of the kind to be asked for, such as a class that
            stays: `parts = split(problem.retain, classes=[5])`. The data of the request itself are no part of it.
        seed: Of everything random.
        execution: Device, precision, memory, progress.

    Raises:
        MissingNeedError: The rehearsal lacks `forget`, `retain` or `recipe`.

    Example:
        >>> parts = expunge.split(problem.retain, classes=[5])  # doctest: +SKIP
        >>> rehearsal = expunge.Problem(model, task, parts.forget, parts.retain, recipe=recipe)  # doctest: +SKIP
        >>> method = expunge.methods.calibrated(expunge.Extrapolate(epochs=2), rehearsal)  # doctest: +SKIP
    """
    for need in (Need.FORGET, Need.RETAIN, Need.RECIPE):
        require_need("calibrated", rehearsal, need)
    retain, absent = cast(MapDataset, rehearsal.retain), cast(MapDataset, rehearsal.forget)
    run = Run(rehearsal.task, seed, execution)
    with reproducible(run.execution.threads):
        oracle = cast(Recipe, rehearsal.recipe)(retain, run.seed)
        wanted = torch.cat(over_batches(run, run.frozen(oracle), absent, run.task.outputs))
        original, tuned = run.frozen(rehearsal.model), run.copy(rehearsal.model)
        method.tune(run, tuned, retain, method.passes(rehearsal))
        outputs = over_factors(run, original, tuned, retain, absent, run.task.outputs)
        distances = [float(run.task.divergence(torch.cat(each), wanted).mean()) for each in outputs[1:]]
    return dataclasses.replace(method, extrapolation=FACTORS[min(range(len(FACTORS)), key=distances.__getitem__)])
