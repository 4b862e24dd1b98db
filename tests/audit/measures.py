"""Measures for the tests of the verdict's rule."""

from expunge.audit.decision import Spread, harmful_gap
from expunge.audit.evidence import Aspect, Estimate, Interval, Measure, Side


def measure(
    value: float,
    oracles: list[float],
    *,
    aspect: Aspect = Aspect.FORGETTING,
    side: Side = Side.UNDECIDED,
    original: float | None = None,
    margin: float = 0.0,
    limit: float = 0.1,
    needed: int | None = None,
) -> Measure:
    """A figure of the unlearned model beside those of the oracles, with its p-value not yet corrected."""
    spread = Spread(oracles)
    p_value = spread.p_value(value, margin)
    return Measure(
        name="figure",
        on="forget",
        aspect=aspect,
        unlearned=_exactly(value),
        original=None if original is None else _exactly(original),
        oracles=oracles,
        band=spread.band(),
        margin=margin,
        limit=limit,
        p_value=p_value,
        corrected_p_value=p_value,
        deviation=spread.deviation,
        at_most=spread.at_most(harmful_gap(aspect, value, spread.mean)),
        side=side,
        oracles_needed=needed,
    )


def _exactly(value: float) -> Estimate:
    return Estimate(value=value, interval=Interval(low=value, high=value))
