"""How fast a model learns the forget set again from a few of its examples.

The plain test mostly measures the last layer: a large negative bias on a forgotten class passes it. So the same is
done once more after the last layer has been refitted on those same examples, which shows what the features hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from expunge.audit.evidence import Curve, Estimate
from expunge.audit.observation import observe, sample
from expunge.audit.statistics import mean_estimate, prediction_band
from expunge.data import MapDataset
from expunge.errors import SettingError
from expunge.training import Optimizer, Run, Term
from expunge.training.batches import in_order
from expunge.training.evaluation import EVALUATION_BATCH
from expunge.training.seeds import generator


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
    """

    forget_examples: int = 100
    retain_examples: int = 900
    steps: tuple[int, ...] = (0, 5, 10, 20, 40)
    learning_rate: float = 1e-3
    batch_size: int = 128
    measured_on: int = 1000

    def __post_init__(self) -> None:
        """Check that the steps increase."""
        if list(self.steps) != sorted(set(self.steps)) or not self.steps or self.steps[0] < 0:
            raise SettingError(f"the steps of relearning must increase from 0 on, not {self.steps}")


@dataclass(frozen=True)
class _Material:
    """The same examples for every model."""

    learned: tuple[MapDataset, MapDataset]  # of the forget set, of the retain set
    measured: MapDataset


def relearn(
    settings: Relearning,
    run: Run,
    *,
    forget: MapDataset,
    retain: MapDataset,
    unlearned: nn.Module,
    original: nn.Module,
    oracles: Sequence[nn.Module],
    refit: bool,
) -> Curve:
    """Relearning curves of the unlearned model, the original and every oracle, on the same examples."""
    material = _material(settings, run.seed, forget, retain)
    threshold = 0.95 * float(_quality(run, original, material.measured).mean())
    curves = {
        name: _curve(settings, run, model, material, refit=refit)
        for name, model in [
            ("unlearned", unlearned),
            ("original", original),
            *((f"oracle {number}", model) for number, model in enumerate(oracles, start=1)),
        ]
    }
    means = {name: [float(values.mean()) for values in points] for name, points in curves.items()}
    oracle_means = [means[f"oracle {number}"] for number in range(1, len(oracles) + 1)]
    return Curve(
        name="relearning, head refitted" if refit else "relearning",
        steps=list(settings.steps),
        unlearned=_estimates(curves["unlearned"], run.seed),
        original=_estimates(curves["original"], run.seed),
        oracles=oracle_means,
        band=[prediction_band(values, (0.0, 1.0)) for values in zip(*oracle_means, strict=True)],
        threshold=threshold,
        relearn_steps={name: _first_above(settings.steps, points, threshold) for name, points in means.items()},
    )


def _material(settings: Relearning, seed: int, forget: MapDataset, retain: MapDataset) -> _Material:
    if len(forget) < 2:
        raise SettingError("relearning needs at least 2 forget examples: one to learn and one to measure on")
    order = torch.randperm(len(forget), generator=generator(seed, "relearned examples"))
    count = min(settings.forget_examples, len(forget) // 2)
    again = Subset(forget, order[:count].tolist())  # pyright: ignore[reportArgumentType]
    rest = Subset(forget, order[count:].sort().values.tolist())  # pyright: ignore[reportArgumentType]
    kept = sample(retain, settings.retain_examples, generator(seed, "relearning retain"))
    return _Material(
        (again, kept),
        sample(rest, settings.measured_on, generator(seed, "relearning measured")),
    )


def _curve(
    settings: Relearning, run: Run, model: nn.Module, material: _Material, *, refit: bool
) -> list[NDArray[np.float64]]:
    student = run.copy(model)
    if refit:
        batches = (batch for part in material.learned for batch in in_order(run.task, part, EVALUATION_BATCH))
        run.task.refit_head(student, map(run.to_device, batches))
    points: list[NDArray[np.float64]] = []

    def watch(step: int) -> None:
        if step in settings.steps:
            points.append(_quality(run, student, material.measured))

    watch(0)
    if settings.steps[-1] > 0:
        quiet = Run(run.task, run.seed, replace(run.execution, progress=False))
        quiet.train(
            "relearn",
            student,
            [Term(material.learned, run.task.losses, batch_size=settings.batch_size)],
            Optimizer(settings.learning_rate),
            steps=settings.steps[-1],
            watch=watch,
        )
    return points


def _quality(run: Run, model: nn.Module, dataset: MapDataset) -> NDArray[np.float64]:
    seen = observe(run, model, dataset)
    return seen.quality[seen.headline]


def _estimates(points: list[NDArray[np.float64]], seed: int) -> list[Estimate]:
    return [mean_estimate(values, seed) for values in points]


def _first_above(steps: Sequence[int], values: Sequence[float], threshold: float) -> int | None:
    return next((step for step, value in zip(steps, values, strict=True) if value >= threshold), None)
