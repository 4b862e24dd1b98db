"""KLoM, places among oracles and epsilon by example: against loops, by hand and by simulation."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_curve

from draws import normal
from expunge.audit.margins import (
    compare_margins,
    example_epsilons,
    example_percentiles,
    klom,
    margin_z_scores,
    percentiles_of,
)
from expunge.errors import NonFiniteDataError, ReferenceModelError, SettingError, ShapeError


def _places(audited, oracles):
    others = [np.delete(oracles, place, 0) for place in range(len(oracles))]
    left_out = [np.abs(margin_z_scores(own, rest)) for own, rest in zip(oracles, others, strict=True)]
    return example_percentiles("confidence", np.abs(margin_z_scores(audited, oracles)), left_out)


def _slow_klom(ours, theirs):
    ours, theirs = np.clip(ours, -100, 100), np.clip(theirs, -100, 100)
    edges = np.linspace(min(ours.min(), theirs.min()), max(ours.max(), theirs.max()), 21)
    first, second = (np.histogram(side, edges)[0] / len(side) for side in (ours, theirs))
    return stats.entropy(first, np.maximum(second, 1e-5))


def test_klom_equals_a_slow_loop():
    unlearned, oracles = normal(0, (100, 30), (80, 30))
    unlearned[:, :5] = unlearned[:, :5] * 0.5 + 1
    unlearned[0, 7], oracles[0, 8] = 1e9, -np.inf

    divergences = klom(unlearned, oracles)

    expected = [_slow_klom(unlearned[:, example], oracles[:, example]) for example in range(30)]
    np.testing.assert_allclose(divergences, expected, rtol=1e-9)


def test_klom_by_hand():
    oracles = np.repeat([0.0, 1.0], 50)[:, None]

    shifted = klom(np.repeat([0.0, 1.0], [75, 25])[:, None], oracles)
    apart = klom(np.full((100, 1), 1.0), np.zeros((100, 1)))

    assert shifted == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=1e-3)
    assert apart == pytest.approx(-np.log(1e-5), abs=1e-3)


def test_the_largest_margin_is_counted():
    """Public code drops it: these two would be equal, and a group that holds nothing else would give NaN."""
    oracles = np.repeat([0.0, 1.0], [90, 10])[:, None]

    assert klom(np.zeros((100, 1)), oracles) == pytest.approx(-np.log(0.9), abs=1e-3)
    assert klom(np.ones((100, 1)), oracles) == pytest.approx(-np.log(0.1), abs=1e-3)


def test_equal_margins_everywhere_do_not_diverge():
    assert klom(np.ones((3, 4)), np.ones((5, 4))) == pytest.approx(np.zeros(4), abs=1e-3)


def test_klom_beside_chance_for_models_that_are_retrained():
    p_values = []
    for seed in range(60):
        unlearned, oracles = normal(seed, (8, 40), (8, 40))
        comparison = compare_margins(unlearned, oracles, seed=seed, deals=39)
        p_values.append(comparison.p_values)
        assert comparison.percentiles.median.value > 1  # few models: far above 0, and so is chance
        assert comparison.by_chance[0] > 1

    assert (np.array(p_values) <= 0.1).mean(0) == pytest.approx(np.full(3, 0.1), abs=0.13)


def test_klom_beside_chance_for_models_that_are_not():
    unlearned, oracles = normal(1, (8, 600), (8, 600))
    unlearned[:, :60] += 4  # one example in ten

    comparison = compare_margins(unlearned, oracles, seed=0, deals=99)

    assert (comparison.unlearned_models, comparison.oracle_models) == (8, 8)
    assert comparison.p_values[1] == 0.01
    assert comparison.percentiles.percentile_95.value > comparison.by_chance[1]
    assert comparison.percentiles.values[0] == pytest.approx(np.median(klom(unlearned, oracles)), rel=1e-12)


def test_klom_beside_chance_depends_on_the_seed_alone():
    unlearned, oracles = normal(2, (4, 20), (6, 20))

    first, again, other = (compare_margins(unlearned, oracles, seed=seed, deals=20) for seed in (0, 0, 1))

    assert first == again
    assert first.by_chance != other.by_chance
    assert type(first).model_validate_json(first.model_dump_json()) == first


def test_z_scores_by_hand():
    scores = margin_z_scores([4.0, 2.0], [[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])

    assert scores == pytest.approx([2 / np.sqrt(4 / 3), -1 / np.sqrt(3 * 4 / 3)])


def test_z_scores_of_an_oracle_follow_students_t():
    random = np.random.default_rng(3)
    oracles = random.normal(5, 3, (6, 4000))

    scores = margin_z_scores(oracles[0], oracles[1:])

    assert stats.kstest(scores, stats.t(4).cdf).pvalue > 0.001


def test_the_place_of_one_model_beside_that_of_each_oracle():
    audited, oracles = normal(4, 500, (7, 500))

    like, unlike = _places(audited, oracles), _places(audited + 5, oracles)

    assert len(like.oracles) == 7
    assert like.unlearned.median.value < 1.2 * max(oracle[0] for oracle in like.oracles)
    assert unlike.unlearned.median.value > 3 * max(oracle[0] for oracle in unlike.oracles)
    assert like.oracles[2] == pytest.approx(
        percentiles_of(np.abs(margin_z_scores(oracles[2], np.delete(oracles, 2, 0)))).values
    )


def test_a_fixed_margin_within_the_range_is_missed_by_the_surrogate_and_found_by_klom():
    (oracles,) = normal(5, (60, 300))
    fixed = np.full((60, 300), 0.1)

    assert _places(fixed[0], oracles).unlearned.median.value < 0.5
    assert compare_margins(fixed, oracles, seed=0, deals=49).p_values[0] == 0.02
    estimates, _ = example_epsilons(fixed, oracles)
    assert np.median(estimates) > 2


def test_epsilons_equal_those_of_scikit_learns_curve():
    unlearned, oracles = normal(6, (20, 10), (25, 10))
    unlearned[:, :5] += 2
    unlearned, oracles = unlearned.round(1), oracles.round(1)

    estimates, _ = example_epsilons(unlearned, oracles, delta=0.01)

    for example, estimate in enumerate(estimates):
        ours, theirs = unlearned[:, example], oracles[:, example]
        centres = np.median(ours), np.median(theirs)
        scores = [(ours, theirs)] + [(abs(ours - centre), abs(theirs - centre)) for centre in centres]
        assert estimate == pytest.approx(max(_slow_epsilon(*pair, 0.01) for pair in scores), rel=1e-9)


def _slow_epsilon(ours, theirs, delta):
    best = 0.0
    for sign in (1, -1):
        false, true, _ = roc_curve(
            np.repeat([1, 0], [len(ours), len(theirs)]), sign * np.r_[ours, theirs], drop_intermediate=False
        )
        for one, other in zip(true, false, strict=True):
            smoothed_false = (other * len(theirs) + 0.5) / (len(theirs) + 1)
            smoothed_true = (one * len(ours) + 0.5) / (len(ours) + 1)
            ratios = [(one - delta) / smoothed_false, (other - delta) / smoothed_true]
            best = max(best, np.log(max(*ratios, 1.0)))
    return best


def test_epsilons_of_separated_models_reach_the_largest_that_there_is():
    estimates, bounds = example_epsilons(np.ones((64, 2)), np.zeros((64, 2)))

    assert estimates == pytest.approx(np.full(2, np.log(130)), abs=1e-3)
    assert (bounds > 1.9).all()
    assert (bounds < estimates).all()


def test_the_bound_of_an_example_is_seldom_above_the_truth_and_the_estimate_often():
    unlearned, oracles = normal(7, (64, 3000), (64, 3000))

    estimates, bounds = example_epsilons(unlearned, oracles)

    assert (bounds > 0).mean() <= 0.05
    assert (estimates > 0).mean() > 0.9


@pytest.mark.parametrize("level", [0, 1])
def test_intervals_of_percentiles_cover(level):
    random = np.random.default_rng(8)
    truth = (np.log(2), np.log(20))[level]

    percentiles = [percentiles_of(random.exponential(size=200)) for _ in range(400)]

    intervals = [(each.median, each.percentile_95)[level].interval for each in percentiles]
    assert 0.93 <= np.mean([truth in interval for interval in intervals]) <= 0.985


def test_bad_input_is_refused_by_name():
    unlearned, oracles = normal(9, (4, 5), (3, 5))

    with pytest.raises(ShapeError, match="oracle signals are of 4 examples, the others of 5"):
        klom(unlearned, oracles[:, :4])
    with pytest.raises(NonFiniteDataError, match="5 of 15 oracle signals are NaN"):
        klom(unlearned, np.where(np.arange(3)[:, None] == 1, np.nan, oracles))
    with pytest.raises(SettingError, match="at least 2 unlearned models are needed, not 1"):
        compare_margins(unlearned[:1], oracles, seed=0)
    with pytest.raises(SettingError, match="at least one deal, not 0"):
        compare_margins(unlearned, oracles, seed=0, deals=0)
    with pytest.raises(ReferenceModelError, match="same margin on every example"):
        margin_z_scores(unlearned[0], np.ones((3, 5)))
    with pytest.raises(SettingError, match="delta"):
        example_epsilons(unlearned, oracles, delta=-0.1)
