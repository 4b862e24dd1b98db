"""Figures and names as people read them."""

import math
from collections.abc import Sequence

from expunge.audit.evidence import Estimate, Interval, Measure, Side

SPACE = "\N{NO-BREAK SPACE}"
_LISTED = 10


def number(value: float) -> str:
    """Three decimals, or two significant digits where three decimals would show nothing."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.2g}"


def interval(value: Interval) -> str:
    """Both ends."""
    return f"{number(value.low)} to {number(value.high)}"


def estimate(value: Estimate) -> str:
    """The value with its interval."""
    return f"{number(value.value)} ({interval(value.interval)})"


def mean(values: Sequence[float]) -> str:
    """The mean of the oracles' values, or a word where there are none."""
    return number(sum(values) / len(values)) if values else "none"


def count(value: int, noun: str = "") -> str:
    """A whole number with separators, and a noun in the fitting number."""
    if not noun:
        return f"{value:,}"
    return f"{value:,}{SPACE}{noun}{'' if value == 1 else 's'}"


def percent(share: float) -> str:
    """A share as a percentage with two significant digits."""
    rounded = float(f"{100 * share:.2g}") if abs(share) < 0.1 else round(100 * share, 1)
    return f"{rounded:g}{SPACE}%"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.{2 if seconds < 10 else 0}f}{SPACE}s"
    if seconds < 7200:
        return f"{seconds / 60:.1f}{SPACE}min"
    return f"{seconds / 3600:.1f}{SPACE}h"


def size(octets: int) -> str:
    """Bytes in the binary unit that leaves fewest digits."""
    value, unit = float(octets), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f}{SPACE}{unit}" if unit in ("B", "KiB") else f"{value:.1f}{SPACE}{unit}"


def listing(names: Sequence[str]) -> str:
    """Names with commas and `and`; a long list is cut."""
    if len(names) > _LISTED:
        names = [*names[:_LISTED], f"{len(names) - _LISTED} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def left_out(items: int, what: str) -> str:
    """How a caption ends: with what there was no room for, if anything."""
    return f"; {count(items)} more {what}." if items > 0 else "."


def capital(text: str) -> str:
    """With a capital at the start, and the rest as it is."""
    return text[:1].upper() + text[1:]


def share_of_retraining(share: Estimate) -> str:
    """What unlearning cost beside one retraining."""
    low, high = share.interval.low, share.interval.high
    if share.value < 1:
        return f"{percent(share.value)} of one retraining ({percent(low)} to {percent(high)})"
    return f"{share.value:.1f} times as much as one retraining ({low:.1f} to {high:.1f})"


def place(measure: Measure) -> str:
    """Where the unlearned model lies against the oracles."""
    value, band = measure.unlearned.value, measure.band
    if not measure.aspect.judged:
        return "not judged"
    if measure.side is Side.ABOVE:
        return f"above retraining, {number(value - band.high)} beyond the band"
    if measure.side is Side.BELOW:
        return f"below retraining, {number(band.low - value)} beyond the band"
    if measure.side is Side.INSIDE and measure.limit is None:
        return "no difference found"
    if measure.side is Side.INSIDE:
        return f"as retraining, at most {number(measure.at_most)} off"
    if measure.oracles_needed is None:
        return "undecided, whatever the number of oracles"
    return f"undecided; {measure.oracles_needed} oracles would probably decide"
