"""Example by example: how far single forget examples are from what retraining makes of them."""

from collections.abc import Iterator, Sequence

import numpy as np

from expunge.audit.attacks import u_lira
from expunge.audit.decision import FEWEST_ORACLES
from expunge.audit.distances import mean_divergence
from expunge.audit.evidence import ExampleEpsilons, Leak
from expunge.audit.margins import (
    ExamplePercentiles,
    MarginDivergence,
    compare_margins,
    example_epsilons,
    example_percentiles,
    margin_z_scores,
)
from expunge.audit.membership import FEWEST_SHADOWS, saturated
from expunge.audit.portrait import FORGET, Floats, Portrait
from expunge.audit.shadows import ShadowSignals
from expunge.tasks import Task

MOST_LEAKS = 10
DELTA = 1e-5


def percentiles(task: Task, unlearned: Portrait, oracles: Sequence[Portrait]) -> list[ExamplePercentiles]:
    """Of the divergence from the oracles and of the distance in confidence, over forget examples.

    Each oracle is measured among the others, so there must be three; else there is none. Confidence is left out where
    it is saturated.
    """
    if len(oracles) < FEWEST_ORACLES:
        return []

    def divergence(portrait: Portrait) -> Floats:
        others = [oracle.outputs for oracle in oracles if oracle is not portrait]
        return mean_divergence(task, portrait.outputs, others)

    def confidence(portrait: Portrait) -> Floats:
        others = [oracle.sets[FORGET].signals for oracle in oracles if oracle is not portrait]
        return np.abs(margin_z_scores(portrait.sets[FORGET].signals, np.stack(others)))

    measured = {"divergence from the oracles": divergence}
    if not saturated(oracles):
        measured["confidence, standard deviations from the oracles"] = confidence
    return [
        example_percentiles(name, measure(unlearned), list(map(measure, oracles))) for name, measure in measured.items()
    ]


def margins(shadows: ShadowSignals | None, oracles: Sequence[Portrait], seed: int) -> dict[str, MarginDivergence]:
    """KLoM of the unlearned shadows on each set; of no set without two shadows."""
    if shadows is None or len(shadows.trained) < FEWEST_SHADOWS:
        return {}
    return {
        name: compare_margins(signals, np.stack([oracle.sets[name].signals for oracle in oracles]), seed=seed)
        for name, signals in shadows.unlearned.items()
    }


def epsilons(shadows: ShadowSignals | None, oracles: Sequence[Portrait]) -> ExampleEpsilons | None:
    """Epsilon of each forget example between unlearned shadows and oracles."""
    if shadows is None or len(shadows.trained) < FEWEST_SHADOWS:
        return None
    ours, theirs = shadows.unlearned[FORGET], np.stack([oracle.sets[FORGET].signals for oracle in oracles])
    estimates, bounds = example_epsilons(ours, theirs, delta=DELTA)
    return ExampleEpsilons(
        estimates=estimates.tolist(),
        lower_bounds=bounds.tolist(),
        largest=float(np.log(2 * min(len(ours), len(theirs)) + 2)),
        delta=DELTA,
        unlearned_models=len(ours),
        oracle_models=len(theirs),
    )


def leaks(
    unlearned: Portrait,
    oracles: Sequence[Portrait],
    shadows: ShadowSignals | None,
    found: ExampleEpsilons | None,
    positions: Sequence[int],
) -> list[Leak]:
    """The ten forget examples on which the unlearned model is furthest from retraining, furthest first.

    None with fewer than three oracles, or where confidence is saturated.
    """
    if len(oracles) < FEWEST_ORACLES or saturated(oracles):
        return []
    own, others = unlearned.sets[FORGET], [oracle.sets[FORGET] for oracle in oracles]
    signals = np.stack([other.signals for other in others])
    away = margin_z_scores(own.signals, signals)
    ratios = None if found is None or shadows is None else u_lira(own.signals, shadows.unlearned[FORGET], signals)
    expected = np.mean([other.headline for other in others], axis=0)

    def all_leaks() -> Iterator[Leak]:
        for place in np.argsort(-np.abs(away), kind="stable")[:MOST_LEAKS].tolist():
            yield Leak(
                position=positions[place],
                deviations=float(away[place]),
                quality=float(own.headline[place]),
                oracle_quality=float(expected[place]),
                likelihood_ratio=None if ratios is None else float(ratios[place]),
                epsilon=None if found is None else found.estimates[place],
            )

    return list(all_leaks())
