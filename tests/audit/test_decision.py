"""Tests of difference and equivalence: their error rates by simulation, and the bookkeeping around them."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from expunge.audit.decision import Spread, holm, settle
from expunge.audit.evidence import Aspect, Interval, Side
from measures import measure


def assert_rate(hits: int, trials: int, rate: float) -> None:
    interval = stats.binomtest(hits, trials).proportion_ci(0.999)
    assert interval.low <= rate <= interval.high, hits / trials


def test_the_band_of_three_oracles_is_five_deviations_either_way():
    values = [0.1, 0.2, 0.3]

    band = Spread(values).band()

    assert band.high - 0.2 == pytest.approx(4.9683 * np.std(values, ddof=1), rel=1e-4)
    assert band.low == pytest.approx(0.4 - band.high)


def test_the_band_covers_one_more_oracle_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(4000, 5))

    assert_rate(sum(draw[4] in Spread(list(draw[:4])).band() for draw in draws), len(draws), 0.95)


def test_the_band_is_cut_to_the_limits_of_a_share():
    assert Spread([0.0, 0.01, 0.0]).band((0.0, 1.0)).low == 0
    assert Spread([0.0, 0.0, 0.0]).band((0.0, 1.0)) == Interval(low=0, high=0)


def test_a_retrained_model_has_uniform_p_values():
    draws = np.random.default_rng(1).normal(size=(4000, 6))
    p_values = [Spread(list(draw[:5])).p_value(draw[5], margin=0.0) for draw in draws]

    for level in (0.05, 0.3, 0.7):
        assert_rate(sum(p <= level for p in p_values), len(draws), level)


@pytest.mark.parametrize("oracles", [3, 5, 10])
def test_mean_distances_among_oracles_are_corrected_for_the_pairs_they_share(oracles: int):
    random = np.random.default_rng(2)
    outside = plain = 0
    for _ in range(2000):
        distances = distances_between(random.normal(size=(oracles + 1, 50)) * random.gamma(10, size=(oracles + 1, 1)))
        others = [float(np.delete(row[:oracles], index).mean()) for index, row in enumerate(distances[:oracles])]
        ours = float(distances[oracles, :oracles].mean())
        outside += Spread(others, leave_one_out=True).p_value(ours, margin=0.0) <= 0.05
        plain += Spread(others).p_value(ours, margin=0.0) <= 0.05

    assert outside / 2000 <= 0.07
    assert plain > outside


def distances_between(models: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(models[:, None] - models[None], axis=2)


def test_a_difference_within_the_margin_is_never_held_against_a_model():
    assert Spread([0.5, 0.5, 0.5]).p_value(0.515, margin=0.02) == 1
    assert Spread([0.5, 0.5, 0.5]).p_value(0.53, margin=0.02) == 0


def test_holm_adjusts_as_the_textbook_does():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_chance_of_any_false_deviation_is_held():
    random = np.random.default_rng(3)
    draws = random.normal(size=(2000, 8, 6))
    false = sum(
        any(
            each.side in (Side.ABOVE, Side.BELOW)
            for each in settle([measure(row[5], list(row[:5]), limit=9) for row in draw], 0.05)
        )
        for draw in draws
    )

    assert stats.binomtest(false, len(draws), 0.05, alternative="greater").pvalue > 0.001, false


def test_a_model_just_beyond_the_limit_passes_as_equivalent_in_one_of_twenty_at_most():
    draws = np.random.default_rng(4).normal(scale=0.03, size=(3000, 6))
    passed = sum(settle([measure(0.1, list(draw))], 0.05)[0].side is Side.INSIDE for draw in draws)

    assert stats.binomtest(passed, len(draws), 0.05, alternative="greater").pvalue > 0.001, passed


def test_a_retrained_model_is_equivalent_where_oracles_agree_well():
    draws = np.random.default_rng(5).normal(scale=0.02, size=(1000, 6))

    assert sum(settle([measure(draw[5], list(draw[:5]))], 0.05)[0].side is Side.INSIDE for draw in draws) > 930


@pytest.mark.parametrize(
    ("aspect", "value", "side"),
    [
        (Aspect.UTILITY, 0.9, Side.INSIDE),
        (Aspect.UTILITY, 0.1, Side.UNDECIDED),
        (Aspect.DISTANCE, 0.1, Side.INSIDE),
        (Aspect.DISTANCE, 0.9, Side.UNDECIDED),
        (Aspect.FORGETTING, 0.9, Side.UNDECIDED),
        (Aspect.CLOSENESS, 0.1, Side.UNDECIDED),
    ],
)
def test_a_direction_that_does_no_harm_needs_no_equivalence(aspect: Aspect, value: float, side: Side):
    assert settle([measure(value, [0.48, 0.5, 0.52], aspect=aspect, margin=0.4)], 0.05)[0].side is side


def test_two_oracles_decide_nothing():
    assert settle([measure(0.9, [0.1, 0.1001])], 0.05)[0].side is Side.UNDECIDED


def test_a_summary_is_not_judged_and_costs_the_others_nothing():
    summary = measure(0.9, [0.5, 0.51, 0.52], aspect=Aspect.SUMMARY)
    alone, beside = (settle(measures, 0.05)[0] for measures in ([measure(0.9, [0.5, 0.51, 0.52])], [
        measure(0.9, [0.5, 0.51, 0.52]), summary]))  # fmt: skip

    assert alone == beside


def test_the_number_of_oracles_that_would_decide():
    (undecided,) = settle([measure(0.5, [0.4, 0.5, 0.6])], 0.05)
    assert undecided.side is Side.UNDECIDED
    assert undecided.oracles_needed == 10

    random, trials = np.random.default_rng(6), 300

    def decided(count: int) -> int:
        """How often so many oracles decide, that scatter as those do and whose mean alone is drawn."""
        means = random.normal(0.5, 0.1 / np.sqrt(count), trials)
        settled = [settle([measure(0.5, list(standardised(np.arange(count), mean, 0.1)))], 0.05)[0] for mean in means]
        return sum(each.side is Side.INSIDE for each in settled)

    assert decided(6) < 0.7 * trials
    assert_rate(decided(10), trials, 0.8)


def standardised(values: NDArray[Any], mean: float, deviation: float) -> NDArray[np.float64]:
    return mean + deviation * (values - values.mean()) / values.std(ddof=1)


def test_no_number_of_oracles_decides_about_a_gap_between_chance_and_the_limit():
    (undecided,) = settle([measure(0.65, list(standardised(np.arange(5.0), 0.5, 0.1)))], 0.05)

    assert undecided.side is Side.UNDECIDED
    assert undecided.oracles_needed is None


def test_larger_deviations_have_smaller_p_values():
    p_values = [Spread([0.4, 0.5, 0.6]).p_value(value, margin=0.02) for value in (0.5, 0.6, 0.8, 2.0)]

    assert all(one > other for one, other in pairwise(p_values))


def test_a_difference_of_the_stated_size_is_found_with_the_stated_power():
    random, trials, count = np.random.default_rng(3), 1500, 6
    draws = [list(random.normal(0.5, 0.02, count)) for _ in range(trials)]
    settled = [settle([measure(0.5, oracles, margin=0.02)], 0.05, power=0.8)[0] for oracles in draws]
    # the size is stated in terms of the deviation that the oracles show; with the true one it is exact
    size = 0.02 + float(np.mean([each.detectable - 0.02 for each in settled])) * 0.02 / float(
        np.mean([each.deviation for each in settled])
    )
    found = [
        settle([measure(random.normal(0.5 + size, 0.02), oracles, margin=0.02)], 0.05)[0].side is Side.ABOVE
        for oracles in draws
    ]

    assert_rate(sum(found), trials, 0.8)
