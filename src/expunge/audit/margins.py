"""Distributions of margins: how several unlearned models, or one, lie among the oracles on each example.

A margin is the logit of the label less the log-sum-exp of the others, which is what `Task.signal` gives for a
classifier; margins are clipped to ±100. Several unlearned models are compared as a distribution (KLoM, epsilon). Of one
model only its place among the oracles can be told, which says less: a method whose models always land on the same
margin passes where that margin is within the oracles' range.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from expunge.audit.attack_scores import Floats, epsilon_lower_bounds
from expunge.audit.attacks import usable_references, usable_signals
from expunge.audit.intervals import LEVEL, Estimate, Interval, Part
from expunge.errors import ReferenceModelError, SettingError

_BINS, _EMPTY, _CHUNK = 20, 1e-5, 500


class Percentiles(Part):
    """Percentiles over examples; each interval is over examples, the models held fixed."""

    median: Estimate
    percentile_95: Estimate
    percentile_99: Estimate

    @property
    def values(self) -> tuple[float, float, float]:
        """The three figures."""
        return self.median.value, self.percentile_95.value, self.percentile_99.value


class MarginDivergence(Part):
    """KLoM: divergence of the unlearned models' margins from the oracles', in nats.

    Attributes:
        unlearned_models: Their number.
        oracle_models: Their number.
        percentiles: Over examples.
        by_chance: Mean of the three percentiles where models are dealt to the two groups at random. With few models
            it is far above 0, and KLoM means nothing but by comparison with it.
        p_values: How often a random deal reaches each percentile.
    """

    unlearned_models: int
    oracle_models: int
    percentiles: Percentiles
    by_chance: tuple[float, float, float]
    p_values: tuple[float, float, float]


class ExamplePercentiles(Part):
    """A distance from the oracles, example by example, as percentiles.

    Attributes:
        name: Of what.
        unlearned: The percentiles of the unlearned model.
        oracles: The three percentiles of each oracle, measured among the others.
    """

    name: str
    unlearned: Percentiles
    oracles: list[tuple[float, float, float]]


def klom(unlearned: ArrayLike, oracles: ArrayLike) -> Floats:
    """KL divergence of each example's margins, unlearned from oracles, in nats.

    Histograms of 20 equal bins from the smallest to the largest margin of either; a bin that no oracle reaches counts
    as 1e-5. Source: Georgiev et al. 2024 (arXiv 2410.23232), appendix E.1. Unlike in the authors' code, the largest
    margin falls into the last bin instead of being dropped.

    Args:
        unlearned: (models, examples) margins; the paper takes 100 models.
        oracles: (models, examples), in any number.

    Returns:
        (examples,) divergences, at least 0.

    Raises:
        ShapeError: The examples differ in number.
        NonFiniteDataError: A margin is NaN.
    """
    ours, theirs = _pair(unlearned, oracles)
    bins, models = _bins(np.concatenate([ours, theirs])), np.arange(len(ours) + len(theirs))
    return _divergences(bins, (models < len(ours))[None])[0]


def compare_margins(unlearned: ArrayLike, oracles: ArrayLike, *, seed: int, deals: int = 200) -> MarginDivergence:
    """KLoM with its percentiles, beside what chance gives.

    Args:
        unlearned: (models, examples) margins, two models at least.
        oracles: (models, examples), two at least.
        seed: Of the random deals.
        deals: How many.

    Raises:
        SettingError: There are fewer than two models of a kind, or fewer than one deal.
        ShapeError: The examples differ in number.
        NonFiniteDataError: A margin is NaN.
    """
    ours, theirs = _pair(unlearned, oracles, fewest=2)
    if deals < 1:
        raise SettingError(f"chance is estimated from at least one deal, not {deals}")
    pooled, random = np.concatenate([ours, theirs]), np.random.default_rng(seed)
    groups = np.arange(len(pooled)) < len(ours)
    dealt = np.concatenate([groups[None], [random.permutation(groups) for _ in range(deals)]])
    chunks = np.split(pooled, np.arange(_CHUNK, pooled.shape[1], _CHUNK), axis=1)
    divergences = np.concatenate([_divergences(_bins(chunk), dealt) for chunk in chunks], axis=1)
    figures = np.quantile(divergences, _LEVELS, axis=1)  # (percentiles, 1 + deals)
    reached = (figures[:, 1:] >= figures[:, :1] - 1e-12).sum(1)
    return MarginDivergence(
        unlearned_models=len(ours),
        oracle_models=len(theirs),
        percentiles=percentiles_of(divergences[0]),
        by_chance=_three(figures[:, 1:].mean(1)),
        p_values=_three((1 + reached) / (1 + deals)),
    )


def margin_z_scores(margins: ArrayLike, oracles: ArrayLike) -> Floats:
    """How many standard deviations of one more oracle a model's margins lie above the oracles' mean.

    (margin - mean) / (s * sqrt(1 + 1 / m)): a t distribution with m - 1 degrees of freedom for an oracle, if margins
    are normal. s is taken to be one hundredth of the pooled one at least.

    Args:
        margins: (examples,) of the audited model, which is none of the oracles.
        oracles: (models, examples), two at least.

    Returns:
        (examples,)

    Raises:
        SettingError: There are fewer than two oracles.
        ShapeError: The examples differ in number.
        NonFiniteDataError: A margin is NaN.
        ReferenceModelError: The oracles agree exactly on every example.
    """
    own = usable_signals("audited", margins, 1)
    others = usable_references("oracle", oracles, len(own), 2)
    variances = others.var(0, ddof=1)
    if not variances.any():
        raise ReferenceModelError(
            "the oracles give the same margin on every example, so nothing is known of how retraining varies; check "
            "that the recipe uses its seed"
        )
    deviations = np.sqrt(np.maximum(variances, 1e-4 * variances.mean()) * (1 + 1 / len(others)))
    return (own - others.mean(0)) / deviations


def example_epsilons(unlearned: ArrayLike, oracles: ArrayLike, *, delta: float = 1e-5) -> tuple[Floats, Floats]:
    """Epsilon of each example, between unlearned and retrained models: an estimate, and a lower bound.

    The estimate is the largest of log((1 - delta - FPR) / FNR) and log((1 - delta - FNR) / FPR) over attacks that
    guess from an example's margin: beyond a threshold, in either direction, or near the median of either kind of
    model. Source: the NeurIPS 2023 unlearning challenge (Triantafillou et al. 2024, arXiv 2406.09073). A rate that is
    divided by is taken to be (errors + 1/2) / (models + 1), where the challenge drops thresholds without errors: the
    estimate never exceeds log(2 * models + 2). The best of many thresholds errs upwards, above all with few models;
    the bound does not, and holds with 95 % confidence for each example alone.

    Args:
        unlearned: (models, examples) margins or other signals.
        oracles: (models, examples), in any number.
        delta: At least 0 and below 1.

    Returns:
        Estimates and lower bounds, (examples,) each.

    Raises:
        SettingError: `delta` is out of range.
        ShapeError: The examples differ in number.
        NonFiniteDataError: A margin is NaN.
    """
    ours, theirs = _pair(unlearned, oracles)
    bounds = epsilon_lower_bounds(ours, theirs, delta=delta)
    estimates = [_plain_epsilons(ours, theirs, delta)]
    for centre in (np.median(ours, axis=0), np.median(theirs, axis=0)):
        estimates.append(_plain_epsilons(np.abs(ours - centre), np.abs(theirs - centre), delta))
    return np.max(estimates, axis=0), bounds


def example_percentiles(name: str, unlearned: Floats, oracles: Sequence[Floats]) -> ExamplePercentiles:
    """Percentiles of a distance from the oracles, (examples,), beside those of each oracle among the others."""
    theirs = [_three(np.quantile(values, _LEVELS)) for values in oracles]
    return ExamplePercentiles(name=name, unlearned=percentiles_of(unlearned), oracles=theirs)


def percentiles_of(values: Floats) -> Percentiles:
    """Median, 95th and 99th percentile over examples, with intervals from order statistics.

    With fewer than 36 examples for the 95th percentile, or 183 for the 99th, the largest value seen is the upper end
    and the interval covers less than 95 %.
    """
    ordered, count = np.sort(values), len(values)
    tail = (1 - LEVEL) / 2

    def estimate(level: float) -> Estimate:
        low, high = stats.binom.ppf([tail, 1 - tail], count, level).astype(int)
        interval = Interval(low=float(ordered[max(low - 1, 0)]), high=float(ordered[min(high, count - 1)]))
        return Estimate(value=float(np.quantile(ordered, level)), interval=interval)

    return Percentiles(median=estimate(0.5), percentile_95=estimate(0.95), percentile_99=estimate(0.99))


_LEVELS = (0.5, 0.95, 0.99)


def _pair(unlearned: ArrayLike, oracles: ArrayLike, fewest: int = 1) -> tuple[Floats, Floats]:
    ours = usable_references("unlearned", unlearned, None, fewest)
    return ours, usable_references("oracle", oracles, ours.shape[1], fewest)


def _three(values: Floats) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _bins(pooled: Floats) -> NDArray[np.int64]:
    """Bin of each margin, (models, examples); the edges span all models, so that they are the same for every deal."""
    low, width = pooled.min(0), np.ptp(pooled, axis=0)
    places = np.floor((pooled - low) / np.where(width > 0, width, 1.0) * _BINS)
    return np.minimum(places, _BINS - 1).astype(np.int64)


def _divergences(bins: NDArray[np.int64], unlearned: NDArray[np.bool_]) -> Floats:
    """KL divergences for each way of dealing the models: (deals, examples); `unlearned` is (deals, models)."""
    models, examples = bins.shape
    present = np.zeros((models, examples * _BINS))
    present[np.arange(models)[:, None], bins + np.arange(examples) * _BINS] = 1
    ours, theirs = (
        (chosen.astype(np.float64) @ present / chosen[0].sum()).reshape(-1, examples, _BINS)
        for chosen in (unlearned, ~unlearned)
    )
    filled = np.maximum(theirs, _EMPTY)
    return special.rel_entr(ours, filled / filled.sum(-1, keepdims=True)).sum(-1)


def _plain_epsilons(ours: Floats, theirs: Floats, delta: float) -> Floats:
    """The challenge's formula over all thresholds in both directions: (examples,)."""
    pooled = np.concatenate([ours, theirs])
    order = np.argsort(pooled, axis=0, kind="stable")
    ordered = np.take_along_axis(pooled, order, 0)
    cut = np.vstack([ordered[:-1] < ordered[1:], np.ones(ordered.shape[1], dtype=bool)])  # never within a tie
    first, second = len(ours), len(theirs)
    below = np.where(cut, np.cumsum(order < first, axis=0), 0)
    below_theirs = np.where(cut, np.cumsum(order >= first, axis=0), 0)
    beyond = ((below, below_theirs), (first - below, second - below_theirs))
    ratios = [
        ratio
        for mine, other in beyond
        for ratio in (
            (mine / first - delta) * (second + 1) / (other + 0.5),
            (other / second - delta) * (first + 1) / (mine + 0.5),
        )
    ]
    return np.log(np.maximum(np.max(ratios, axis=(0, 1)), 1.0))
