"""Intervals against formulas and by simulation."""

import numpy as np
import pytest
from scipy import stats

from expunge.audit.evidence import Interval, Side
from expunge.audit.statistics import mean_of, prediction_band, product_of, side_of, statistic_of


def test_the_band_of_three_oracles_is_five_deviations_either_way():
    values = [0.1, 0.2, 0.3]

    band = prediction_band(values)

    assert band.high - 0.2 == pytest.approx(4.9683 * np.std(values, ddof=1), rel=1e-4)
    assert band.low == pytest.approx(0.4 - band.high)


def test_the_band_covers_one_more_oracle_as_often_as_it_says():
    random = np.random.default_rng(0)
    draws = random.normal(size=(4000, 5))
    hits = sum(draw[4] in prediction_band(list(draw[:4])) for draw in draws)

    interval = stats.binomtest(hits, len(draws)).proportion_ci(0.999)

    assert interval.low <= 0.95 <= interval.high


def test_the_band_is_cut_to_the_limits_of_a_share():
    band = prediction_band([0.0, 0.01, 0.0], (0.0, 1.0))

    assert band.low == 0
    assert prediction_band([0.0, 0.0, 0.0], (0.0, 1.0)) == Interval(low=0, high=0)


def test_a_share_of_zero_has_an_interval_with_width():
    estimate = mean_of(np.zeros(178), seed=0).estimate()

    assert estimate.value == 0
    assert estimate.interval.high == pytest.approx(0.0211, abs=1e-4)


def test_divergences_of_zero_are_no_share():
    assert mean_of(np.zeros(178), seed=0, share=False).interval() == Interval(low=0, high=0)


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = np.random.default_rng(1).exponential(size=2000)

    estimate = mean_of(values, seed=0).estimate()

    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert estimate.interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert estimate.interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_the_bootstrap_resamples_paired_quantities_together():
    values = np.random.default_rng(2).normal(size=500)

    estimate = statistic_of(np.stack([values, values]), lambda means: means[0] - means[1], seed=0).estimate()

    assert estimate.interval.low == pytest.approx(0, abs=1e-12)
    assert estimate.interval.high == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "side"),
    [(0.50, Side.INSIDE), (0.62, Side.INSIDE), (0.63, Side.ABOVE), (0.38, Side.INSIDE), (0.37, Side.BELOW)],
)
def test_the_margin_widens_the_band(value: float, side: Side):
    assert side_of(value, Interval(low=0.4, high=0.6), margin=0.025, widest=0.5) is side


def test_inside_a_band_that_is_too_wide_nothing_can_be_told():
    assert side_of(0.5, Interval(low=0.2, high=0.8), margin=0.02, widest=0.2) is Side.UNDECIDED
    assert side_of(0.9, Interval(low=0.2, high=0.8), margin=0.02, widest=0.2) is Side.ABOVE


def test_a_product_of_shares_multiplies_ends():
    half, one = mean_of(np.repeat([0.0, 1.0], 50), seed=0), mean_of(np.ones(100), seed=0)

    product = product_of([half, one]).estimate()

    assert product.value == 0.5
    assert product.interval.low == pytest.approx(half.interval().low * one.interval().low)
