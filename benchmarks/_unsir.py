"""What the UNSIR benchmarks share: problems on CIFAR-10, retain-only controls, and cells of evidence."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from _cifar10 import ORACLE_SEEDS, TASK, Size, load, trained
from expunge import (
    UNSIR,
    Algorithm,
    AuditSettings,
    Evidence,
    Execution,
    FineTune,
    Method,
    Problem,
    References,
    Relearning,
    Stage,
    Unlearned,
    split,
    unlearn,
)

EXECUTION = Execution(channels_last=True)


def audit_settings(size: Size) -> AuditSettings:
    """Fewer examples and steps for the quick size."""
    if size.name == "quick":
        return AuditSettings(relearning=Relearning(steps=(0, 5, 10, 20), batch_size=64, measured_on=300), examples=1000)
    return AuditSettings(relearning=Relearning(measured_on=500), examples=5000)


@cache
def problem(size: Size, forget: tuple[int, ...], seed: int) -> Problem:
    """The original of this seed, asked to forget these classes."""
    train, test = load(size)
    parts = split(train, classes=forget)
    return Problem(trained(size, (), seed).model, TASK, parts.forget, parts.retain, test, parts.classes)


@cache
def references(size: Size, forget: tuple[int, ...], seed: int) -> References:
    """The original of this seed beside three oracles, which are measured once for all seeds."""
    asked = problem(size, forget, seed)
    if seed:
        first = references(size, forget, 0)
        return replace(first, problem=asked, original=first.sitting.portray(asked.model))
    oracles = [trained(size, forget, oracle).model for oracle in ORACLE_SEEDS]
    return References.prepare(asked, oracles, settings=audit_settings(size), execution=EXECUTION)


def control(method: UNSIR, impair_steps: int, repair_steps: int) -> FineTune:
    """The same retained images, rates and steps as UNSIR, and nothing else."""
    stages = (
        Stage(method.impair_learning_rate, steps=impair_steps),
        Stage(method.repair_learning_rate, steps=repair_steps, schedule=method.repair_schedule),
    )
    return FineTune(
        stages,
        Algorithm.ADAM,
        weight_decay=0.0,
        batch_size=method.batch_size,
        retain_per_class=method.retain_per_class,
    )


def steps_of(unlearned: Unlearned) -> tuple[int, int]:
    """Steps of the impair and the repair phase."""
    steps = {phase.name: phase.steps for phase in unlearned.record.phases}
    return steps["impair"], steps["repair"]


def run(size: Size, forget: tuple[int, ...], seed: int, method: Method) -> tuple[Unlearned, dict[str, Any]]:
    """Unlearn and audit; the cell has the figures that the tables show."""
    unlearned = unlearn(problem(size, forget, seed), method, seed=seed, execution=EXECUTION)
    evidence = references(size, forget, seed).compare(unlearned)
    retrain = [trained(size, forget, oracle) for oracle in ORACLE_SEEDS]
    cost = {
        "seconds": unlearned.record.seconds,
        "examples": unlearned.record.examples,
        "share of a retrain, seconds": unlearned.record.seconds / _mean([model.seconds for model in retrain]),
        "share of a retrain, examples": unlearned.record.examples / _mean([model.examples for model in retrain]),
        "steps": [phase.steps for phase in unlearned.record.phases],
    }
    return unlearned, figures(evidence) | cost


def figures(evidence: Evidence) -> dict[str, Any]:
    """The measures by name, for the unlearned model, the original and each oracle, and the verdict."""
    cell: dict[str, Any] = {"verdict": evidence.verdict.value}
    for measure in evidence.measures:
        name = f"{measure.name}, {measure.on}"
        cell[name] = measure.unlearned.value
        cell[f"{name}, others"] = {
            "interval": [measure.unlearned.interval.low, measure.unlearned.interval.high],
            "original": measure.original.value if measure.original else None,
            "oracles": measure.oracles,
            "band": [measure.band.low, measure.band.high],
            "side": measure.side.value,
        }
    for curve in evidence.curves:
        cell[f"{curve.name}, curve"] = {
            "steps": curve.steps,
            "unlearned": [point.value for point in curve.unlearned],
            "original": [point.value for point in curve.original],
            "oracles": curve.oracles,
            "relearn steps": curve.relearn_steps,
        }
    return cell


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
