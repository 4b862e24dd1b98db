"""Intervals: over examples for one model, over oracles for what retraining gives."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from expunge.audit.evidence import Estimate, Interval, Side

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]

LEVEL = 0.95
_RESAMPLES, _CHUNK = 2000, 200


def mean_estimate(values: NDArray[np.float64], seed: int, *, share: bool = True) -> Estimate:
    """Mean of per-example values with a 95 % interval over examples.

    Wilson's interval for shares of zeros and ones (a bootstrap of all zeros would have no width); otherwise a
    percentile bootstrap with 2,000 resamples.

    Args:
        values: (examples,)
        seed: Of the resampling.
        share: Whether the values are hits and misses where they are ones and zeros.
    """
    mean = float(values.mean())
    if share and np.isin(values, (0.0, 1.0)).all():
        interval = stats.binomtest(int(values.sum()), len(values)).proportion_ci(LEVEL, method="wilson")
        return Estimate(value=mean, interval=Interval(low=float(interval.low), high=float(interval.high)))
    return bootstrap(values[None], lambda means: means[0], seed)


def bootstrap(rows: NDArray[np.float64], statistic: Statistic, seed: int) -> Estimate:
    """A function of means of per-example values, with a percentile bootstrap over examples.

    Args:
        rows: (quantities, examples); examples are resampled together.
        statistic: Maps means (quantities, ...) to (...).
        seed: Of the resampling.
    """
    random = np.random.default_rng(seed)
    count = rows.shape[1]
    chunks = [
        random.multinomial(count, np.full(count, 1 / count), size=_CHUNK) @ rows.T / count
        for _ in range(_RESAMPLES // _CHUNK)
    ]
    resampled = statistic(np.concatenate(chunks).T)
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value=float(statistic(rows.mean(1))), interval=Interval(low=float(low), high=float(high)))


def prediction_band(values: Sequence[float], limits: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
    """Where one more oracle would fall, with 95 % confidence.

    mean ± t(m-1, .975) · s · sqrt(1 + 1/m) for m >= 2 oracles with standard deviation s, cut to `limits`.
    """
    count = len(values)
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)) * deviation * np.sqrt(1 + 1 / count)
    return Interval(low=float(max(mean - half, limits[0])), high=float(min(mean + half, limits[1])))


def side_of(value: float, band: Interval, margin: float, widest: float) -> Side:
    """Where a value lies against a band.

    Args:
        value: Of the unlearned model.
        band: Of the oracles.
        margin: How far outside still counts as inside.
        widest: A value inside a band wider than this is undecided: the oracles do not agree enough to tell.
    """
    if value > band.high + margin:
        return Side.ABOVE
    if value < band.low - margin:
        return Side.BELOW
    return Side.UNDECIDED if band.high - band.low > widest else Side.INSIDE
