"""Intervals against formulas and by simulation."""

import numpy as np
import pytest

from expunge.audit.evidence import Interval
from expunge.audit.statistics import mean_of, product_of, statistic_of


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


def test_a_product_of_shares_multiplies_ends():
    half, one = mean_of(np.repeat([0.0, 1.0], 50), seed=0), mean_of(np.ones(100), seed=0)

    product = product_of([half, one]).estimate()

    assert product.value == 0.5
    assert product.interval.low == pytest.approx(half.interval().low * one.interval().low)
