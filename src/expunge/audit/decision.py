"""Where a figure lies against the oracles: tests of difference and of equivalence, corrected for their number."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
from scipy import optimize, special, stats

from expunge.audit.evidence import Aspect, Measure, Side
from expunge.audit.intervals import LEVEL, Interval

FEWEST_ORACLES = 3
_MOST_ORACLES = 1000


@dataclass(frozen=True)
class Spread:
    """What the oracles' values of one figure say about retraining.

    Args:
        values: One for each oracle.
        resolution: The smallest step by which a value can change. Their deviation is taken to be one step at least:
            a few oracles that agree to the example do so by chance.
        leave_one_out: Whether each value compares an oracle with the others. Such values vary less among themselves
            than that of one more model does, because they share pairs; their deviation is corrected by
            (m - 1) / (m - 2), the factor of the jackknife for a statistic of pairs.
    """

    values: Sequence[float]
    resolution: float = 0.0
    leave_one_out: bool = False

    @property
    def count(self) -> int:
        """Number of oracles, m."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean of the oracles' values."""
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Standard deviation s of one more model."""
        deviation = float(np.std(self.values, ddof=1))
        if self.leave_one_out:
            deviation *= (self.count - 1) / max(self.count - 2, 0.5)
        return max(deviation, self.resolution)

    def band(self, limits: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
        """Where one more oracle would fall, with 95 % confidence: mean ± t(m-1, .975) · s · sqrt(1 + 1/m)."""
        half = float(stats.t.ppf(0.5 + LEVEL / 2, self.count - 1)) * self.deviation * np.sqrt(1 + 1 / self.count)
        return Interval(low=float(max(self.mean - half, limits[0])), high=float(min(self.mean + half, limits[1])))

    def p_value(self, value: float, margin: float) -> float:
        """How likely a retrained model lies as far from the others as `value` does, beyond the margin: two-sided t."""
        return _p_value(abs(value - self.mean) - margin, self.deviation, self.count)

    def at_most(self, gap: float) -> float:
        """Upper 95 % confidence limit of a model's distance from the mean of retraining, given the distance seen."""
        return gap + _half_width(self.deviation, self.count)

    def mean_interval(self) -> Interval:
        """Two-sided 95 % confidence interval of the mean of retraining."""
        half = float(stats.t.ppf(0.5 + LEVEL / 2, self.count - 1)) * self.deviation / np.sqrt(self.count)
        return Interval(low=self.mean - half, high=self.mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number. Source: Holm 1979, Scandinavian Journal of Statistics 6."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


def settle(measures: Sequence[Measure], error_rate: float, power: float = 0.8) -> list[Measure]:
    """Decide each measure's side, with at most `error_rate` chance of a false deviation among them all.

    A measure that is judged is above or below where its deviation is significant; inside where it is not and the
    equivalence test (one-sided for utility and distance, where one direction does no harm) shows it to be within the
    limit; else undecided. Each that is judged also says how large a difference would have been found with this power.
    """
    judged = [measure for measure in measures if measure.aspect.judged]
    corrected = dict(zip(map(id, judged), holm([measure.p_value for measure in judged]), strict=True))
    level = error_rate / max(len(judged), 1)
    return [
        _settled(measure, corrected.get(id(measure), measure.p_value), error_rate, level, power).model_copy(
            update={"detectable": _detectable(measure, level, power) if measure.aspect.judged else None}
        )
        for measure in measures
    ]


def harmful_gap(aspect: Aspect, value: float, mean: float) -> float:
    """Distance from the mean oracle, counted as zero in a direction that does no harm."""
    if aspect is Aspect.UTILITY:
        return max(mean - value, 0.0)
    if aspect is Aspect.DISTANCE:
        return max(value - mean, 0.0)
    return abs(value - mean)


def _settled(measure: Measure, corrected: float, error_rate: float, level: float, power: float) -> Measure:
    value, mean = measure.unlearned.value, float(np.mean(measure.oracles))
    side = Side.UNDECIDED
    if len(measure.oracles) >= FEWEST_ORACLES:
        if corrected <= error_rate:
            side = Side.ABOVE if value > mean else Side.BELOW
        elif measure.limit is None or measure.at_most <= measure.limit:
            side = Side.INSIDE
    needed = _oracles_needed(measure, level, power) if side is Side.UNDECIDED else None
    return measure.model_copy(update={"side": side, "corrected_p_value": corrected, "oracles_needed": needed})


def _oracles_needed(measure: Measure, level: float, power: float) -> int | None:
    """The fewest oracles that would decide with this power, if they scattered as these do; None where 1,000 would not.

    The mean of new oracles lies within `power` of its distribution of where it lies now.
    """
    value, mean, deviation = measure.unlearned.value, float(np.mean(measure.oracles)), measure.deviation
    limit = np.inf if measure.limit is None else measure.limit
    gap, excess = harmful_gap(measure.aspect, value, mean), abs(value - mean) - measure.margin
    counts = np.arange(max(len(measure.oracles) + 1, FEWEST_ORACLES), _MOST_ORACLES + 1)
    slack = stats.norm.ppf((1 + power) / 2) * deviation / np.sqrt(counts)
    equivalent = gap + slack + stats.t.ppf(LEVEL, counts - 1) * deviation / np.sqrt(counts) <= limit
    scale = max(deviation, np.finfo(np.float64).tiny) * np.sqrt(1 + 1 / counts)
    different = 2 * stats.t.sf((excess - slack) / scale, counts - 1) <= level
    deciding = counts[equivalent | different]
    return int(deciding[0]) if len(deciding) else None


def _detectable(measure: Measure, level: float, power: float) -> float:
    """The true difference that the test finds with this power where no other measure deviates: Bonferroni's level."""
    count = len(measure.oracles)
    scale = measure.deviation * float(np.sqrt(1 + 1 / count))
    return measure.margin + scale * _noncentrality(count - 1, level, power)


@cache
def _noncentrality(freedom: int, level: float, power: float) -> float:
    """The noncentrality at which a two-sided t test at this level rejects, upwards, with this power.

    A mean of the normal distribution function over quantiles of the chi-square distribution: scipy's noncentral t is
    not reliable at the few degrees of freedom and far tails that occur here.
    """
    critical = float(stats.t.isf(level / 2, freedom))
    scales = np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom)

    def shortfall(noncentrality: float) -> float:
        return float(special.ndtr(noncentrality - critical * scales).mean()) - power

    return cast(float, optimize.brentq(shortfall, -10, critical * float(scales[-1]) + 10))


def _p_value(excess: float, deviation: float, count: int) -> float:
    if excess <= 0:
        return 1.0
    scale = deviation * np.sqrt(1 + 1 / count)
    return 2 * float(stats.t.sf(excess / scale, count - 1)) if scale > 0 else 0.0


def _half_width(deviation: float, count: int) -> float:
    return float(stats.t.ppf(LEVEL, count - 1)) * deviation / np.sqrt(count)
