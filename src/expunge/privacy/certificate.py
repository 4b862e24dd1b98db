"""What is guaranteed of a model, relative to what, and on which numbers that rests."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.privacy.constants import Constant, Origin
from expunge.privacy.tier import Tier


class Certificate(BaseModel):
    """A guarantee and everything that it depends on; `docs/guarantees.md` derives the bounds.

    Attributes:
        tier: How far it goes.
        reference: The mechanism that the model is compared with, in words.
        neighbours: Which pairs of training sets are compared.
        epsilon: Privacy loss; 0 where the guarantee is exact.
        delta: Probability with which the loss may be larger; 0 where the guarantee is exact.
        sigma: Standard deviation of the noise on each weight.
        sensitivity: Largest distance (L2) of the weights before noise from those of the reference before noise.
        residual: Norm of the gradient of the retained objective at the weights before noise, or a bound on it.
        constants: What the sensitivity was computed from.
        conditions: What must hold besides and could not be checked, in words.
        not_covered: What the guarantee does not speak of.
        budget_spent: Share of the deletion budget that is used up, where there is one.
        budget_left: What remains of it.

    Raises:
        ValueError: It claims to be certified although a constant is assumed or a condition is open.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tier: Tier
    reference: str
    neighbours: str = "the training set, and the training set without the forget set"
    epsilon: float = Field(default=0.0, ge=0)
    delta: float = Field(default=0.0, ge=0, lt=1)
    sigma: float = Field(default=0.0, ge=0)
    sensitivity: float = Field(default=0.0, ge=0)
    residual: float | None = Field(default=None, ge=0)
    constants: tuple[Constant, ...] = ()
    conditions: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    budget_spent: float | None = None
    budget_left: float | None = None

    @model_validator(mode="after")
    def _claims_no_more_than_is_known(self) -> Self:
        if self.tier in (Tier.EXACT, Tier.CERTIFIED) and (self.assumed or self.conditions):
            open_points = [constant.name for constant in self.assumed] + list(self.conditions)
            raise ValueError(f"the tier is {self.tier.value}, but this is only assumed: {'; '.join(open_points)}")
        if self.tier is Tier.EXACT and (self.epsilon or self.delta):
            raise ValueError(f"an exact guarantee has no loss, not ({self.epsilon}, {self.delta})")
        if self.tier in (Tier.CERTIFIED, Tier.CONDITIONAL) and self.epsilon > 0 and not self.delta > 0:
            raise ValueError("a guarantee by Gaussian noise needs a delta above 0")
        return self

    @property
    def assumed(self) -> tuple[Constant, ...]:
        """The constants that could not be checked."""
        return tuple(constant for constant in self.constants if constant.origin is Origin.ASSUMED)

    @classmethod
    def exact(cls, reference: str, *, constants: Sequence[Constant] = (), not_covered: Sequence[str] = ()) -> Self:
        """The certificate of a result that is distributed exactly as the reference."""
        return cls(tier=Tier.EXACT, reference=reference, constants=tuple(constants), not_covered=tuple(not_covered))


def tier_of(constants: Sequence[Constant], conditions: Sequence[str]) -> Tier:
    """Certified where nothing is assumed, else conditional."""
    assumed = any(constant.origin is Origin.ASSUMED for constant in constants)
    return Tier.CONDITIONAL if assumed or conditions else Tier.CERTIFIED
