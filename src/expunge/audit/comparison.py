"""From portraits to measures: the unlearned model beside the original and the oracles, figure by figure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from expunge.audit.decision import Spread, harmful_gap, settle
from expunge.audit.distances import mean_divergence, tug_of_war
from expunge.audit.evidence import Aspect, AttackFigures, Curve, Estimate, Measure, Membership, Side
from expunge.audit.gallery import Restored
from expunge.audit.intervals import Interval
from expunge.audit.membership import HOLDOUT, RETAIN, RMIA, U_LIRA, Attack, Attackers
from expunge.audit.neighbours import NEIGHBOURS
from expunge.audit.portrait import FORGET, Floats, Observation, Portrait
from expunge.audit.relearning import PLAIN, Relearning
from expunge.audit.settings import Margins
from expunge.audit.shadows import ShadowSignals
from expunge.audit.statistics import Quantity, mean_of
from expunge.tasks import Task

TAKEN_FOR_UNLEARNED = f"{U_LIRA}, share taken for unlearned"
FEWEST_OF_SUBGROUP = 20
FORGOTTEN_KIND = "holdout, forgotten kind"

Figure = Callable[[Portrait], Quantity]


class Scale(Enum):
    """What a figure is, for what counts as a difference and what as equivalent.

    A figure that only finds differences says nothing of equivalence and has no limit; so do logarithms of errors,
    whose equivalence a share of the same errors tests.
    """

    SHARE = auto()
    SHARE_AFTER = auto()
    FINDS_ONLY = auto()
    RATIO = auto()
    NATS = auto()


@dataclass(frozen=True)
class Comparison:
    """Portraits of all models that are compared.

    Attributes:
        shadows: Signals of shadows, where there are any.
        subgroups: By name, to which subgroup each measured holdout example belongs: (examples,) each.
    """

    task: Task
    unlearned: Portrait
    original: Portrait
    oracles: Sequence[Portrait]
    margins: Margins
    seed: int
    shadows: ShadowSignals | None = None
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict[str, NDArray[np.str_]])

    def measures(self) -> list[Measure]:
        """All figures on whole sets; half of the error rate is theirs."""
        figures = [
            *self._qualities(),
            *self._restorations(),
            *self._divergences(),
            *self._disagreements(),
            self._tug_of_war(),
            *(self._relearned(name) for name in self.original.relearning),
            *self._probed(),
            *self._quantised(),
            *self._reworded(),
            *self._near(),
            *self._membership(),
        ]
        return settle(figures, self.margins.error_rate / 2, self.margins.power)

    def groups(self) -> list[Measure]:
        """The headline quality by group, of the holdout where there is one, else of the training data.

        Half of the error rate is theirs. Subgroups are of the holdout's examples of kinds that are kept.
        """
        measures = list(self._by_subgroup())
        for name in [HOLDOUT] if HOLDOUT in self.unlearned.sets else [FORGET, "retain"]:
            seen = self.unlearned.sets[name]
            for group in sorted(seen.kinds, key=_natural):
                aspect = Aspect.FORGETTING if group in self._gone or name == FORGET else Aspect.UTILITY
                quality = next(iter(seen.quality))
                measures.append(self._share(quality, group, aspect, name, seen.groups == group))
        return settle(measures, self.margins.error_rate / 2, self.margins.power)

    def _by_subgroup(self) -> Iterator[Measure]:
        for name in self.subgroups:
            for value, chosen in self._members(name):
                if chosen.sum() >= FEWEST_OF_SUBGROUP:
                    quality = next(iter(self.unlearned.sets[HOLDOUT].quality))
                    yield self._share(quality, f"{name}: {value}", Aspect.UTILITY, HOLDOUT, chosen)

    def _members(self, name: str) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each value of a subgroup, with the holdout examples of kinds that are kept which have it."""
        values = self.subgroups[name]
        kept = ~np.isin(self.unlearned.sets[HOLDOUT].groups, sorted(self._gone))
        for value in sorted(set(values[kept].tolist()), key=_natural):
            yield value, kept & (values == value)

    def curves(self, settings: Relearning) -> list[Curve]:
        """Relearning curves."""
        return [self._curve(name, settings.steps) for name in self.original.relearning]

    @property
    def _gone(self) -> set[str]:
        return self.unlearned.sets[FORGET].kinds - self.unlearned.sets["retain"].kinds

    @property
    def _single(self) -> bool:
        """Whether a single example was to be forgotten."""
        return not self.original.relearning

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

    def _restorations(self) -> Iterator[Measure]:
        """How near what is restored of forget images comes to the truth, as logarithms, where images are restored."""
        if self.original.restored is None:
            return

        def closeness(portrait: Portrait) -> Quantity:
            return mean_of(portrait.sets[FORGET].signals, self.seed, share=False)

        yield self._measure("restoration, -log error", FORGET, Aspect.FORGETTING, closeness, Scale.RATIO)
        if self.original.restored.frechet is not None:

            def frechet(portrait: Portrait) -> Quantity:
                return cast(Quantity, cast(Restored, portrait.restored).frechet)

            name = "restoration, -log Fréchet distance"
            yield self._measure(name, FORGET, Aspect.FORGETTING, frechet, Scale.RATIO)

    def _divergences(self) -> list[Measure]:
        def from_oracles(portrait: Portrait) -> Quantity:
            others = [oracle.outputs for oracle in self.oracles if oracle is not portrait]
            return mean_of(mean_divergence(self.task, portrait.outputs, others), self.seed, share=False)

        def from_original(portrait: Portrait) -> Quantity:
            distances = mean_divergence(self.task, portrait.outputs, [self.original.outputs])
            return mean_of(distances, self.seed, share=False)

        return [
            self._measure("divergence from the oracles", FORGET, Aspect.DISTANCE, from_oracles, Scale.NATS),
            self._measure("divergence from the original", FORGET, Aspect.CLOSENESS, from_original, Scale.NATS),
        ]

    def _disagreements(self) -> Iterator[Measure]:
        """How often another answer is given than by an oracle, averaged over the oracles."""
        for name in (FORGET, HOLDOUT):
            if name not in self.unlearned.sets or self.unlearned.sets[name].answered is None:
                continue

            def figure(portrait: Portrait, name: str = name) -> Quantity:
                others = [oracle for oracle in self.oracles if oracle is not portrait]
                own = portrait.sets[name].answered
                differing = [own != other.sets[name].answered for other in others]
                return mean_of(np.mean(differing, axis=0), self.seed, share=False)

            yield self._measure("disagreement with the oracles", name, Aspect.SUMMARY, figure)

    def _tug_of_war(self) -> Measure:
        def figure(portrait: Portrait) -> Quantity:
            others = [oracle for oracle in self.oracles if oracle is not portrait]
            return tug_of_war(portrait, others, self.seed)

        return self._measure("Tug-of-War", "all sets", Aspect.SUMMARY, figure)

    def _relearned(self, name: str) -> Measure:
        """The mean height of a curve: how much is relearned, and how soon."""

        def figure(portrait: Portrait) -> Quantity:
            return mean_of(np.mean(portrait.relearning[name], axis=0), self.seed)

        return self._measure(f"{name}, mean", FORGET, Aspect.KNOWLEDGE, figure, Scale.SHARE_AFTER)

    def _probed(self) -> Iterator[Measure]:
        for name in self.original.recognised:

            def figure(portrait: Portrait, name: str = name) -> Quantity:
                return mean_of(portrait.recognised[name], self.seed)

            yield self._measure(name, FORGET, Aspect.KNOWLEDGE, figure, Scale.SHARE_AFTER)

    def _quantised(self) -> Iterator[Measure]:
        quality = next(iter(self.original.sets[FORGET].quality))
        for bits in self.original.quantised:

            def figure(portrait: Portrait, bits: int = bits) -> Quantity:
                return mean_of(portrait.quantised[bits], self.seed)

            name = f"{quality}, {bits}-bit weights"
            yield self._measure(name, FORGET, Aspect.KNOWLEDGE, figure, Scale.SHARE_AFTER)

    def _reworded(self) -> Iterator[Measure]:
        for kind in self.original.reworded:

            def figure(portrait: Portrait, kind: str = kind) -> Quantity:
                return mean_of(portrait.reworded[kind], self.seed)

            yield self._measure(f"probability, {kind}", FORGET, Aspect.KNOWLEDGE, figure, Scale.SHARE_AFTER)

    def _near(self) -> Iterator[Measure]:
        def figure(portrait: Portrait) -> Quantity:
            return mean_of(cast(Floats, portrait.near), self.seed)

        if self.original.near is not None:
            quality = next(iter(self.original.sets[FORGET].quality))
            yield self._measure(quality, NEIGHBOURS, Aspect.UTILITY, figure)

    @cached_property
    def attacks(self) -> list[Attack]:
        """Every membership attack that can be made, on all models; on a single forget example it is none."""
        return [] if self._single else self._attackers.attacks()

    @cached_property
    def _attackers(self) -> Attackers:
        return Attackers(self.unlearned, self.original, self.oracles, self.shadows, self.seed)

    def membership(self) -> list[Membership]:
        """The attacks in full."""
        return [
            Membership(
                attack=attack.name,
                against=attack.against,
                unlearned=attack.unlearned,
                original=AttackFigures.of(attack.original),
                oracles=[AttackFigures.of(oracle) for oracle in attack.oracles],
            )
            for attack in self.attacks
        ]

    def notes(self) -> list[str]:
        """What could not be done, attacks that can tell nothing, and subgroups that are too small to be judged."""
        small = [
            f"{few} value{'s' if few > 1 else ''} of the subgroup {name!r} with fewer than {FEWEST_OF_SUBGROUP} "
            f"examples {'are' if few > 1 else 'is'} left out"
            for name in self.subgroups
            if (few := sum(int(chosen.sum()) < FEWEST_OF_SUBGROUP for _, chosen in self._members(name)))
        ]
        forget = len(self.original.sets[FORGET].groups)
        fewer = [
            f"{len(values):,} of {forget:,} forget examples are measured on the {kind}; the others have none, or are "
            "too long for the model with it"
            for kind, values in self.original.reworded.items()
            if len(values) < forget
        ]
        return [*([_SINGLE] if self._single else []), *small, *fewer] + [
            f"the attack {attack.name} gives every example the same score on every oracle, so it tells nothing here "
            "and is not judged"
            for attack in self.attacks
            if attack.name == RMIA and attack.tied
        ]

    def _membership(self) -> Iterator[Measure]:
        for attack in self.attacks:
            if attack.name == RMIA and not attack.tied:
                areas = [oracle.auc.value for oracle in attack.oracles]
                own, original = attack.unlearned.auc, attack.original.auc
                yield self._compared(f"{RMIA}, area", FORGET, Aspect.FORGETTING, own, original, areas)
        if self._attackers.taken_for_unlearned(self.unlearned) is not None:

            def figure(portrait: Portrait) -> Quantity:
                return mean_of(cast(Floats, self._attackers.taken_for_unlearned(portrait)), self.seed)

            yield self._measure(TAKEN_FOR_UNLEARNED, FORGET, Aspect.DISTANCE, figure, Scale.FINDS_ONLY)
        exposed = [self._attackers.exposure(portrait) for portrait in (self.unlearned, self.original, *self.oracles)]
        found = [area for area in exposed if area is not None]
        if found:
            theirs = [area.value for area in found[2:]]
            yield self._compared("membership (loss), area", RETAIN, Aspect.EXPOSURE, found[0], found[1], theirs)

    def _measure(self, name: str, on: str, aspect: Aspect, figure: Figure, scale: Scale = Scale.SHARE) -> Measure:
        unlearned = figure(self.unlearned)
        theirs = [figure(oracle).value for oracle in self.oracles]
        original = figure(self.original).estimate()
        return self._compared(name, on, aspect, unlearned.estimate(), original, theirs, scale, unlearned.resolution)

    def _compared(
        self,
        name: str,
        on: str,
        aspect: Aspect,
        unlearned: Estimate,
        original: Estimate,
        oracles: list[float],
        scale: Scale = Scale.SHARE,
        resolution: float = 0.0,
    ) -> Measure:
        margins = self.margins
        margin, limit = {
            Scale.SHARE: (margins.share, margins.equivalent_share),
            Scale.SHARE_AFTER: (margins.share, margins.equivalent_after),
            Scale.FINDS_ONLY: (margins.share, None),
            Scale.RATIO: (margins.ratio, None),
            Scale.NATS: (margins.divergence, margins.equivalent_divergence),
        }[scale]
        spread = Spread(oracles, resolution, leave_one_out=aspect is Aspect.DISTANCE)
        p_value = spread.p_value(unlearned.value, margin)
        smallest = -np.inf if scale is Scale.RATIO else 0.0
        largest = np.inf if scale in (Scale.NATS, Scale.RATIO) else 1.0
        return Measure(
            name=name,
            on=on,
            aspect=aspect,
            unlearned=unlearned,
            original=original,
            oracles=oracles,
            band=spread.band((smallest, largest)),
            margin=margin,
            limit=limit,
            p_value=p_value,
            corrected_p_value=p_value,
            deviation=spread.deviation,
            at_most=min(spread.at_most(harmful_gap(aspect, unlearned.value, spread.mean)), largest),
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


_SINGLE = (
    "there is one forget example: relearning and the probes of the features, which learn from some and are measured on "
    "others, and membership attacks, which rank several, are left out; a share of the forget set is then 0 or 1, so "
    "that only gross differences show in it"
)


def _band_at(curves: Sequence[Sequence[float]], position: int) -> Interval:
    return Spread([curve[position] for curve in curves]).band((0.0, 1.0))


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
