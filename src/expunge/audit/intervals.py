"""Figures with their intervals, as every part of the evidence holds them."""

from pydantic import BaseModel, ConfigDict

LEVEL = 0.95


class Part(BaseModel):
    """A part of the evidence: immutable, and without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(Part):
    """A range with its ends."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        """Whether a value lies inside, ends included."""
        return self.low <= value <= self.high


class Estimate(Part):
    """A figure and its 95 % interval over examples."""

    value: float
    interval: Interval
