"""Membership attacks between portraits: who was trained on the forget set?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.audit.attack_scores import AttackEvaluation, evaluate_attack
from expunge.audit.attacks import rmia
from expunge.audit.portrait import FORGET, Portrait

HOLDOUT = "holdout"
FEWEST_UNSEEN = 20


@dataclass(frozen=True)
class MembershipTest:
    """RMIA offline, with the oracles as models that have not seen the forget set.

    Args:
        unseen: Positions in the holdout that forget examples are held against: examples of the same kinds.
        population: Positions in the holdout of the attack's population.
    """

    unseen: NDArray[np.int64]
    population: NDArray[np.int64]

    @classmethod
    def prepare(cls, portrait: Portrait, seed: int) -> "MembershipTest | None":
        """Draw both from the holdout; None where it has too few examples of the forget set's kinds, or no others.

        Where whole kinds were forgotten, the population is the rest of the holdout; else it is a half of it.
        """
        if HOLDOUT not in portrait.sets:
            return None
        forget, retain, holdout = (portrait.sets[name] for name in (FORGET, "retain", HOLDOUT))
        same = np.isin(holdout.groups, sorted(forget.kinds))
        if forget.kinds <= retain.kinds:
            drawn = np.random.default_rng(seed).permutation(len(same)) < len(same) // 2
            unseen, population = np.flatnonzero(same & drawn), np.flatnonzero(~drawn)
        else:
            unseen, population = np.flatnonzero(same), np.flatnonzero(~same)
        return cls(unseen, population) if min(len(unseen), len(population)) >= FEWEST_UNSEEN else None

    def attack(self, audited: Portrait, references: Sequence[Portrait]) -> AttackEvaluation:
        """What RMIA shows of the audited model; it must not be among the references."""
        population = audited.sets[HOLDOUT].signals[self.population]
        theirs = np.stack([reference.sets[HOLDOUT].signals for reference in references])
        on_forget = np.stack([reference.sets[FORGET].signals for reference in references])
        scores = (
            rmia(audited.sets[FORGET].signals, population, on_forget, theirs[:, self.population]),
            rmia(audited.sets[HOLDOUT].signals[self.unseen], population, theirs[:, self.unseen],
                 theirs[:, self.population]),
        )  # fmt: skip
        return evaluate_attack(*scores)
