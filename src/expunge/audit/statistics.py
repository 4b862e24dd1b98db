"""Intervals of one model's figures over examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from expunge.audit.intervals import LEVEL, Estimate, Interval

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_RESAMPLES, _CHUNK = 2000, 200


@dataclass(frozen=True)
class Quantity:
    """A figure of one model, and how to get its 95 % interval over examples: only some of them are asked for it.

    Attributes:
        value: The figure.
        interval: Computes the interval.
        resolution: The smallest step by which the figure can change, where there is one.
    """

    value: float
    interval: Callable[[], Interval]
    resolution: float = 0.0

    def estimate(self) -> Estimate:
        """The figure with its interval."""
        return Estimate(value=self.value, interval=self.interval())


def mean_of(values: NDArray[np.float64], seed: int, *, share: bool = True) -> Quantity:
    """Mean of per-example values.

    The interval is Wilson's for shares of zeros and ones (a bootstrap of all zeros would have no width); otherwise a
    percentile bootstrap with 2,000 resamples.

    Args:
        values: (examples,)
        seed: Of the resampling.
        share: Whether the values are hits and misses where they are ones and zeros.
    """
    if share and np.isin(values, (0.0, 1.0)).all():
        return Quantity(float(values.mean()), lambda: _wilson(values), 1 / len(values))
    return statistic_of(values[None], lambda means: means[0], seed)


def statistic_of(rows: NDArray[np.float64], statistic: Statistic, seed: int) -> Quantity:
    """A function of means of per-example values, with a percentile bootstrap over examples.

    Args:
        rows: (quantities, examples); examples are resampled together.
        statistic: Maps means (quantities, ...) to (...).
        seed: Of the resampling.
    """
    return Quantity(float(statistic(rows.mean(1))), lambda: _bootstrap(rows, statistic, seed))


def product_of(factors: Sequence[Quantity]) -> Quantity:
    """Product of independent quantities in [0, 1]; the interval multiplies theirs."""

    def interval() -> Interval:
        intervals = [factor.interval() for factor in factors]
        return Interval(
            low=float(np.prod([each.low for each in intervals])),
            high=float(np.prod([each.high for each in intervals])),
        )

    return Quantity(float(np.prod([factor.value for factor in factors])), interval)


def _wilson(values: NDArray[np.float64]) -> Interval:
    count, share = len(values), float(values.mean())
    squared = stats.norm.ppf(0.5 + LEVEL / 2) ** 2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    half = np.sqrt(squared * (share * (1 - share) + squared / (4 * count)) / count) / (1 + squared / count)
    return Interval(low=max(0.0, float(centre - half)), high=min(1.0, float(centre + half)))


def _bootstrap(rows: NDArray[np.float64], statistic: Statistic, seed: int) -> Interval:
    random = np.random.default_rng(seed)
    count = rows.shape[1]
    means = [
        random.multinomial(count, np.full(count, 1 / count), size=_CHUNK) @ rows.T / count
        for _ in range(_RESAMPLES // _CHUNK)
    ]
    low, high = np.quantile(statistic(np.concatenate(means).T), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(low=float(low), high=float(high))
