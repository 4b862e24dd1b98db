"""From portraits to measures: the unlearned model beside the original and the oracles, figure by figure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from expunge.audit.attack_scores import AttackEvaluation
from expunge.audit.decision import FEWEST_ORACLES, Spread, harmful_gap, settle
from expunge.audit.distances import mean_divergence, tug_of_war
from expunge.audit.evidence import Aspect, Curve, Measure, Membership, Side
from expunge.audit.intervals import Interval
from expunge.audit.margins import MarginPlace, place_among_oracles
from expunge.audit.membership import HOLDOUT, MembershipTest
from expunge.audit.neighbours import NEIGHBOURS
from expunge.audit.portrait import FORGET, Observation, Portrait
from expunge.audit.probe import ONE_SHOT
from expunge.audit.relearning import PLAIN, Relearning
from expunge.audit.settings import Margins
from expunge.audit.statistics import Quantity, mean_of
from expunge.tasks import Task

FORGOTTEN_KIND = "holdout, forgotten kind"
RMIA = "membership (RMIA)"

Figure = Callable[[Portrait], Quantity]


@dataclass(frozen=True)
class Comparison:
    """Portraits of all models that are compared."""

    task: Task
    unlearned: Portrait
    original: Portrait
    oracles: Sequence[Portrait]
    margins: Margins
    seed: int

    def measures(self) -> list[Measure]:
        """All figures on whole sets; half of the error rate is theirs."""
        figures = [
            *self._qualities(),
            *self._divergences(),
            self._tug_of_war(),
            *(self._relearned(name) for name in self.original.relearning),
            *self._probed(),
            *self._quantised(),
            *self._near(),
            *self._membership(),
        ]
        return settle(figures, self.margins.error_rate / 2)

    def groups(self) -> list[Measure]:
        """The headline quality by group, of the holdout where there is one, else of the training data.

        Half of the error rate is theirs.
        """
        measures: list[Measure] = []
        for name in [HOLDOUT] if HOLDOUT in self.unlearned.sets else [FORGET, "retain"]:
            seen = self.unlearned.sets[name]
            for group in sorted(seen.kinds, key=_natural):
                aspect = Aspect.FORGETTING if group in self._gone or name == FORGET else Aspect.UTILITY
                quality = next(iter(seen.quality))
                measures.append(self._share(quality, group, aspect, name, seen.groups == group))
        return settle(measures, self.margins.error_rate / 2)

    def curves(self, settings: Relearning) -> list[Curve]:
        """Relearning curves."""
        return [self._curve(name, settings.steps) for name in self.original.relearning]

    @property
    def _gone(self) -> set[str]:
        return self.unlearned.sets[FORGET].kinds - self.unlearned.sets["retain"].kinds

    def _qualities(self) -> Iterator[Measure]:
        for name, seen in self.unlearned.sets.items():
            for part, chosen in self._parts(name, seen):
                aspect = Aspect.FORGETTING if part in (FORGET, FORGOTTEN_KIND) else Aspect.UTILITY
                for quality in seen.quality:
                    yield self._share(quality, part, aspect, name, chosen)

    def _parts(self, name: str, seen: Observation) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """A set, or for the holdout its examples of kinds that are kept and of kinds that only the forget set has."""
        forgotten = np.isin(seen.groups, sorted(self._gone))
        if name != HOLDOUT:
            yield name, np.ones_like(forgotten)
            return
        for part, chosen in ((HOLDOUT, ~forgotten), (FORGOTTEN_KIND, forgotten)):
            if chosen.any():
                yield part, chosen

    def _share(self, quality: str, on: str, aspect: Aspect, name: str, chosen: NDArray[np.bool_]) -> Measure:
        def figure(portrait: Portrait) -> Quantity:
            return mean_of(portrait.sets[name].quality[quality][chosen], self.seed)

        return self._measure(quality, on, aspect, figure)

    def _divergences(self) -> list[Measure]:
        def from_oracles(portrait: Portrait) -> Quantity:
            others = [oracle.outputs for oracle in self.oracles if oracle is not portrait]
            return mean_of(mean_divergence(self.task, portrait.outputs, others), self.seed, share=False)

        def from_original(portrait: Portrait) -> Quantity:
            distances = mean_divergence(self.task, portrait.outputs, [self.original.outputs])
            return mean_of(distances, self.seed, share=False)

        return [
            self._measure("divergence from the oracles", FORGET, Aspect.DISTANCE, from_oracles),
            self._measure("divergence from the original", FORGET, Aspect.CLOSENESS, from_original),
        ]

    def _tug_of_war(self) -> Measure:
        def figure(portrait: Portrait) -> Quantity:
            others = [oracle for oracle in self.oracles if oracle is not portrait]
            return tug_of_war(portrait, others, self.seed)

        return self._measure("Tug-of-War", "all sets", Aspect.SUMMARY, figure)

    def _relearned(self, name: str) -> Measure:
        """The mean height of a curve: how much is relearned, and how soon."""

        def figure(portrait: Portrait) -> Quantity:
            return mean_of(np.mean(portrait.relearning[name], axis=0), self.seed)

        return self._measure(f"{name}, mean", FORGET, Aspect.KNOWLEDGE, figure, self.margins.equivalent_after)

    def _probed(self) -> Iterator[Measure]:
        def figure(portrait: Portrait) -> Quantity:
            return mean_of(cast(NDArray[np.float64], portrait.recognised), self.seed)

        if self.original.recognised is not None:
            yield self._measure(ONE_SHOT, FORGET, Aspect.KNOWLEDGE, figure, self.margins.equivalent_after)

    def _quantised(self) -> Iterator[Measure]:
        quality = next(iter(self.original.sets[FORGET].quality))
        for bits in self.original.quantised:

            def figure(portrait: Portrait, bits: int = bits) -> Quantity:
                return mean_of(portrait.quantised[bits], self.seed)

            name = f"{quality}, {bits}-bit weights"
            yield self._measure(name, FORGET, Aspect.KNOWLEDGE, figure, self.margins.equivalent_after)

    def _near(self) -> Iterator[Measure]:
        def figure(portrait: Portrait) -> Quantity:
            return mean_of(cast(NDArray[np.float64], portrait.near), self.seed)

        if self.original.near is not None:
            quality = next(iter(self.original.sets[FORGET].quality))
            yield self._measure(quality, NEIGHBOURS, Aspect.UTILITY, figure)

    @cached_property
    def attacks(self) -> tuple[AttackEvaluation, AttackEvaluation, list[AttackEvaluation]] | None:
        """A membership attack on the unlearned model, the original, and each oracle with the others as references."""
        test = MembershipTest.prepare(self.unlearned, self.seed)
        if test is None:
            return None
        return (
            test.attack(self.unlearned, self.oracles),
            test.attack(self.original, self.oracles),
            [test.attack(oracle, [other for other in self.oracles if other is not oracle]) for oracle in self.oracles],
        )

    def membership(self) -> list[Membership]:
        """The attack in full."""
        if self.attacks is None:
            return []
        unlearned, _, oracles = self.attacks
        return [Membership(attack=RMIA, unlearned=unlearned, oracles=[oracle.auc.value for oracle in oracles])]

    def places(self) -> MarginPlace | None:
        """Where the unlearned model's confidence in each forget example lies; of three oracles at least."""
        if len(self.oracles) < FEWEST_ORACLES:
            return None
        signals = np.stack([oracle.sets[FORGET].signals for oracle in self.oracles])
        return place_among_oracles(self.unlearned.sets[FORGET].signals, signals)

    def _membership(self) -> Iterator[Measure]:
        if self.attacks is None:
            return
        portraits = [self.unlearned, self.original, *self.oracles]
        found = [self.attacks[0], self.attacks[1], *self.attacks[2]]
        areas = {id(portrait): attack.auc for portrait, attack in zip(portraits, found, strict=True)}

        def figure(portrait: Portrait) -> Quantity:
            area = areas[id(portrait)]
            return Quantity(area.value, lambda: area.interval)

        yield self._measure(f"{RMIA}, area", FORGET, Aspect.FORGETTING, figure)

    def _measure(self, name: str, on: str, aspect: Aspect, figure: Figure, equivalent: float | None = None) -> Measure:
        divergence = aspect in (Aspect.DISTANCE, Aspect.CLOSENESS)
        margins = self.margins
        margin = margins.divergence if divergence else margins.share
        limit = margins.equivalent_divergence if divergence else equivalent or margins.equivalent_share
        unlearned, oracles = figure(self.unlearned), [figure(oracle).value for oracle in self.oracles]
        spread = Spread(oracles, unlearned.resolution, leave_one_out=aspect is Aspect.DISTANCE)
        p_value = spread.p_value(unlearned.value, margin)
        return Measure(
            name=name,
            on=on,
            aspect=aspect,
            unlearned=unlearned.estimate(),
            original=figure(self.original).estimate(),
            oracles=oracles,
            band=spread.band((0.0, np.inf) if divergence else (0.0, 1.0)),
            margin=margin,
            limit=limit,
            p_value=p_value,
            corrected_p_value=p_value,
            at_most=spread.at_most(harmful_gap(aspect, unlearned.value, spread.mean)),
            side=Side.UNDECIDED,
        )

    def _curve(self, name: str, steps: tuple[int, ...]) -> Curve:
        oracles = [[float(values.mean()) for values in oracle.relearning[name]] for oracle in self.oracles]
        unlearned, original = (
            [mean_of(values, self.seed).estimate() for values in portrait.relearning[name]]
            for portrait in (self.unlearned, self.original)
        )
        threshold = 0.95 * float(self.original.relearning[PLAIN.name][0].mean())
        heights = {
            "unlearned": [point.value for point in unlearned],
            "original": [point.value for point in original],
        } | {f"oracle {number}": values for number, values in enumerate(oracles, start=1)}
        return Curve(
            name=name,
            steps=list(steps),
            unlearned=unlearned,
            original=original,
            oracles=oracles,
            band=[_band_at(oracles, position) for position in range(len(steps))],
            threshold=threshold,
            relearn_steps={
                model: next((step for step, value in zip(steps, values, strict=True) if value >= threshold), None)
                for model, values in heights.items()
            },
        )


def _band_at(curves: Sequence[Sequence[float]], position: int) -> Interval:
    return Spread([curve[position] for curve in curves]).band((0.0, 1.0))


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
