"""The numbers that a bound rests on, and how each is known."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Origin(StrEnum):
    """How a constant is known."""

    ENFORCED = "enforced"
    MEASURED = "measured"
    ASSUMED = "assumed"

    @property
    def meaning(self) -> str:
        """What that says, in words."""
        return {
            Origin.ENFORCED: "holds by construction, or was checked and would have been refused",
            Origin.MEASURED: "was computed from the model and the data at hand",
            Origin.ASSUMED: "was stated by the user and could not be checked",
        }[self]


class Constant(BaseModel):
    """A number in a bound.

    Attributes:
        name: What it is called in the bound.
        value: The number.
        origin: How it is known.
        meaning: What it is, in words, with its unit where it has one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float
    origin: Origin
    meaning: str
