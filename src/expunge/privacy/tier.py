"""How far a promise goes."""

from enum import StrEnum


class Tier(StrEnum):
    """How far what a method promises goes."""

    EXACT = "exact"
    CERTIFIED = "certified"
    CONDITIONAL = "conditional"
    EMPIRICAL = "empirical"

    @property
    def meaning(self) -> str:
        """What the tier promises, in words."""
        return {
            Tier.EXACT: "equal in distribution to retraining without the forget set",
            Tier.CERTIFIED: "(ε, δ)-close to retraining, with every constant enforced or measured",
            Tier.CONDITIONAL: "(ε, δ)-close to retraining if a declared quantity holds",
            Tier.EMPIRICAL: "nothing is proven; what an audit measures is all that is known",
        }[self]
