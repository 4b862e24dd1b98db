"""Membership attacks between portraits: who was trained on the forget set, and who on the retain set?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from expunge.audit.attack_scores import AttackEvaluation, across_models, area, evaluate_attack
from expunge.audit.attacks import SIGNAL_LIMIT, rmia, u_lira
from expunge.audit.decision import FEWEST_ORACLES
from expunge.audit.intervals import Estimate
from expunge.audit.portrait import FORGET, LOSS, Floats, Portrait
from expunge.audit.shadows import ShadowSignals

HOLDOUT, RETAIN = "holdout", "retain"
RMIA, RMIA_ONLINE, U_LIRA = "membership (RMIA)", "membership (RMIA online)", "membership (U-LiRA)"
FEWEST_UNSEEN = 20
FEWEST_SHADOWS = 2

_UNSEEN, _ORACLE = "holdout examples", "scores of an oracle"

Scores = tuple[Floats, Floats]
"""Of forget examples, and of what they are held against."""


@dataclass(frozen=True)
class Attack:
    """One attack, on the unlearned model, the original and the oracles alike.

    Attributes:
        name: What it is called.
        against: What the scores of forget examples are held against.
        unlearned: What its scores show of the unlearned model.
        original: The same of the original.
        oracles: The same of each oracle.
        tied: Whether every oracle gives one and the same score to all, so that nothing can be told.
    """

    name: str
    against: str
    unlearned: AttackEvaluation
    original: AttackEvaluation
    oracles: list[AttackEvaluation]
    tied: bool


@dataclass(frozen=True)
class Draw:
    """Which holdout examples play which part.

    Args:
        unseen: Positions of those that forget examples are held against: examples of the same kinds.
        population: Positions of the population of RMIA.
    """

    unseen: NDArray[np.int64]
    population: NDArray[np.int64]

    @classmethod
    def prepare(cls, portrait: Portrait, seed: int) -> "Draw | None":
        """Draw both from the holdout; None where it has too few examples of the forget set's kinds, or no others.

        Where whole kinds were forgotten, the population is the rest of the holdout; else it is a half of it.
        """
        if HOLDOUT not in portrait.sets:
            return None
        forget, retain, holdout = (portrait.sets[name] for name in (FORGET, RETAIN, HOLDOUT))
        same = np.isin(holdout.groups, sorted(forget.kinds))
        if forget.kinds <= retain.kinds:
            drawn = np.random.default_rng(seed).permutation(len(same)) < len(same) // 2
            unseen, population = np.flatnonzero(same & drawn), np.flatnonzero(~drawn)
        else:
            unseen, population = np.flatnonzero(same), np.flatnonzero(~same)
        return cls(unseen, population) if min(len(unseen), len(population)) >= FEWEST_UNSEEN else None


@dataclass(frozen=True)
class Attackers:
    """All models that are attacked, each with the others as references."""

    unlearned: Portrait
    original: Portrait
    oracles: Sequence[Portrait]
    shadows: ShadowSignals | None
    seed: int

    def attacks(self) -> list[Attack]:
        """Every attack for which there are examples and models enough."""
        return [*self._against_holdout(), *self._against_an_oracle()]

    def exposure(self, portrait: Portrait) -> Estimate | None:
        """How well a loss threshold tells retained examples from holdout examples of the same kinds: an area."""
        if HOLDOUT not in portrait.sets:
            return None
        retain, holdout = portrait.sets[RETAIN], portrait.sets[HOLDOUT]
        same = np.isin(holdout.groups, sorted(retain.kinds))
        if same.sum() < FEWEST_UNSEEN:
            return None
        return area(retain.scores[LOSS], holdout.scores[LOSS][same])

    def taken_for_unlearned(self, portrait: Portrait) -> Floats | None:
        """Which forget examples U-LiRA takes for unlearned rather than never seen: ones and zeros, (examples,)."""
        references = [oracle for oracle in self.oracles if oracle is not portrait]
        if self.shadows is None or not self._enough_shadows:
            return None
        own, inside = portrait.sets[FORGET].signals, self.shadows.unlearned[FORGET]
        return (u_lira(own, inside, _signals(references, FORGET)) > 0).astype(np.float64)

    @cached_property
    def _enough_shadows(self) -> bool:
        return (
            self.shadows is not None
            and len(self.shadows.trained) >= FEWEST_SHADOWS
            and len(self.oracles) > FEWEST_ORACLES
            and not saturated(self.oracles)
        )

    def _against_holdout(self) -> Iterator[Attack]:
        """RMIA offline with the oracles as models that have not seen the forget set, and attacks without references."""
        draw = Draw.prepare(self.unlearned, self.seed)
        if draw is None:
            return

        def by_ratio(audited: Portrait) -> Scores:
            others = [oracle for oracle in self.oracles if oracle is not audited]
            forget, holdout = audited.sets[FORGET].signals, audited.sets[HOLDOUT].signals
            on_forget, on_holdout = _signals(others, FORGET), _signals(others, HOLDOUT)
            scores = rmia(
                np.concatenate([forget, holdout[draw.unseen]]),
                holdout[draw.population],
                np.concatenate([on_forget, on_holdout[:, draw.unseen]], axis=1),
                on_holdout[:, draw.population],
            )
            return scores[: len(forget)], scores[len(forget) :]

        yield self._attack(RMIA, _UNSEEN, by_ratio, self.oracles)
        for name in self.unlearned.sets[FORGET].scores:
            if name in self.unlearned.sets[HOLDOUT].scores:

                def plain(audited: Portrait, name: str = name) -> Scores:
                    return audited.sets[FORGET].scores[name], audited.sets[HOLDOUT].scores[name][draw.unseen]

                yield self._attack(f"membership ({name})", _UNSEEN, plain, self.oracles)

    def _against_an_oracle(self) -> Iterator[Attack]:
        """Attacks that need shadows, on the forget examples alone.

        What never having seen them looks like is told by the first oracle, which is no reference of any model then.
        """
        shadows = self.shadows
        if shadows is None or not self._enough_shadows:
            return
        apart, *rest = self.oracles

        def references(audited: Portrait) -> list[Portrait]:
            return [oracle for oracle in rest if oracle is not audited]

        def by_likelihood(audited: Portrait) -> Scores:
            inside, outside = shadows.unlearned[FORGET], _signals(references(audited), FORGET)
            return (
                u_lira(audited.sets[FORGET].signals, inside, outside),
                u_lira(apart.sets[FORGET].signals, inside, outside),
            )

        def online(audited: Portrait) -> Scores:
            own, others = [audited, apart], references(audited)
            scores = rmia(
                _signals(own, FORGET),
                _signals(own, HOLDOUT),
                _signals(others, FORGET),
                _signals(others, HOLDOUT),
                shadows=shadows.trained,
            )
            return scores[0], scores[1]

        yield self._attack(U_LIRA, _ORACLE, by_likelihood, rest)
        if HOLDOUT in self.unlearned.sets:
            yield self._attack(RMIA_ONLINE, _ORACLE, online, rest)

    def _attack(
        self, name: str, against: str, scores: Callable[[Portrait], Scores], oracles: Sequence[Portrait]
    ) -> Attack:
        theirs = [scores(oracle) for oracle in oracles]
        unlearned, original, *others = (
            evaluate_attack(*each) for each in (scores(self.unlearned), scores(self.original), *theirs)
        )
        if against == _ORACLE:
            unlearned, original = across_models(unlearned, others), across_models(original, others)
        tied = all(np.ptp(np.concatenate(each)) == 0 for each in theirs)
        return Attack(name, against, unlearned, original, others, tied)


def saturated(oracles: Sequence[Portrait]) -> bool:
    """Whether oracles agree on every forget example to the last bit, at the ends of the range of signals.

    Then nothing can be told of how retraining varies. That no single oracle differs counts too: it is left out in turn.
    """
    signals = np.clip(_signals(oracles, FORGET), -SIGNAL_LIMIT, SIGNAL_LIMIT)
    _, alike = np.unique(signals, axis=0, return_counts=True)
    return bool(alike.max() >= len(signals) - 1)


def _signals(portraits: Sequence[Portrait], name: str) -> Floats:
    return np.stack([portrait.sets[name].signals for portrait in portraits])
