"""Attacks against loops and hand-computed values; intervals and bounds by simulation."""

from functools import partial

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn.metrics import roc_auc_score, roc_curve

from draws import normal
from expunge.audit.attack_scores import clopper_pearson, epsilon_lower_bounds, evaluate_attack
from expunge.audit.attacks import baseline_scores, rmia, u_lira, u_lira_left_out
from expunge.errors import (
    DataError,
    LabelError,
    NonFiniteDataError,
    ReferenceModelError,
    SettingError,
    ShapeError,
)

_signals = partial(normal, mean=1, deviation=2)


def _slow_rmia(audited, population, oracles, population_oracles, shadows, a, gamma):
    scores = []
    for x in range(len(audited)):
        out = np.mean([special.expit(model[x]) for model in oracles])
        average = ((1 + a) * out + 1 - a) / 2
        if shadows is not None:
            average = (out + np.mean([special.expit(model[x]) for model in shadows])) / 2
        wins = 0
        for z in range(len(population)):
            other = ((1 + a) * np.mean([special.expit(model[z]) for model in population_oracles]) + 1 - a) / 2
            ratio = (special.expit(audited[x]) / average) / (special.expit(population[z]) / other)
            wins += ratio >= gamma
        scores.append(wins / len(population))
    return np.array(scores)


def test_several_audited_models_score_as_each_alone():
    audited, population, oracles, elsewhere = _signals(9, (3, 20), (3, 30), (4, 20), (4, 30))

    together = rmia(audited, population, oracles, elsewhere)

    for place in range(3):
        assert np.array_equal(together[place], rmia(audited[place], population[place], oracles, elsewhere))
    with pytest.raises(ShapeError, match="of 3 audited models, those of the population of 2"):
        rmia(audited, population[:2], oracles, elsewhere)


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(("a", "gamma"), [(0.3, 1.0), (0.0, 2.0), (1.0, 1.3)])
def test_rmia_equals_a_slow_loop(online, a, gamma):
    audited, population, oracles, population_oracles, shadows = _signals(0, 30, 50, (4, 30), (4, 50), (3, 30))
    given = shadows if online else None

    scores = rmia(audited, population, oracles, population_oracles, shadows=given, offline_a=a, gamma=gamma)

    expected = _slow_rmia(audited, population, oracles, population_oracles, given, a, gamma)
    np.testing.assert_array_equal(scores, expected)
    assert 0 < scores.mean() < 1


def test_rmia_averages_all_references_of_the_population():
    """Keeping only the largest half of them, as public code does, would give both examples a score of 1."""
    logit = special.logit(np.array([0.2, 0.8]))
    oracles = np.stack([logit, logit[::-1]])

    scores = rmia(special.logit([0.51, 0.49]), special.logit([0.5, 0.5]), oracles, oracles, offline_a=1.0)

    np.testing.assert_array_equal(scores, [1, 0])


def test_rmia_survives_a_masked_logit():
    audited, population, oracles, population_oracles = _signals(1, 5, 20, (3, 5), (3, 20))
    audited[2] = -np.inf

    scores = rmia(audited, population, oracles, population_oracles)

    assert scores[2] == 0
    assert np.isfinite(scores).all()


def test_u_lira_equals_the_ratio_of_fitted_densities():
    audited, unlearned, oracles = _signals(2, 7, (40, 7), (33, 7))

    ratio = u_lira(audited, unlearned, oracles)

    for example in range(7):
        inside, outside = (
            stats.norm(side[:, example].mean(), side[:, example].std(ddof=1)).logpdf(audited[example])
            for side in (unlearned, oracles)
        )
        assert ratio[example] == pytest.approx(inside - outside, rel=1e-12)


def test_u_lira_pools_variances_within_examples_where_models_are_few():
    """The variance over everything would be 50 times as large, for the examples differ in mean."""
    random = np.random.default_rng(3)
    means = random.normal(0, 7, 2000)
    oracles, unlearned = means + random.normal(size=(4, 2000)), means + 3 + random.normal(size=(4, 2000))

    ratio = u_lira(means + 3, unlearned, oracles)

    assert ratio.mean() == pytest.approx(9 / 2, rel=0.1)


def test_u_lira_notices_one_fixed_answer():
    random = np.random.default_rng(4)
    oracles = random.normal(size=(40, 50))

    ratio = u_lira(np.zeros(50), np.zeros((40, 50)), oracles)

    assert np.isfinite(ratio).all()
    assert ratio.min() > 2


def test_u_lira_needs_oracles_that_differ():
    with pytest.raises(ReferenceModelError, match="same signal"):
        u_lira(np.zeros(3), np.ones((4, 3)), np.zeros((4, 3)))


@pytest.mark.parametrize("models", [(5, 5), (4, 12)])
def test_left_out_u_lira_of_exchangeable_models_has_area_one_half(models):
    """Leaving out only the model that is scored gives 0.48 for five of each: one fit then has a model more."""
    areas = []
    for seed in range(200):
        unlearned, oracles = _signals(seed, (models[0], 40), (models[1], 40))
        pairs = zip(*u_lira_left_out(unlearned, oracles), strict=True)
        areas.append(np.mean([evaluate_attack(ours, theirs).auc.value for ours, theirs in pairs]))

    assert np.mean(areas) == pytest.approx(0.5, abs=4 * np.std(areas) / np.sqrt(200))
    assert np.std(areas) < 0.05


def test_left_out_u_lira_scores_no_model_that_it_was_fitted_to():
    unlearned, oracles = _signals(5, (4, 6), (3, 6))

    ours, theirs = u_lira_left_out(unlearned, oracles)

    assert ours.shape == theirs.shape == (3, 6)
    np.testing.assert_array_equal(ours[1], u_lira(unlearned[1], unlearned[[0, 2, 3]], oracles[[0, 2]]))
    np.testing.assert_array_equal(theirs[1], u_lira(oracles[1], unlearned[[0, 2, 3]], oracles[[0, 2]]))


def test_baselines_by_hand():
    scores = baseline_scores([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [1, 1])

    assert scores["loss"] == pytest.approx([np.log(0.25), 0])
    assert scores["confidence"] == pytest.approx([0.5, 1])
    assert scores["entropy"] == pytest.approx([-1.5 * np.log(2), 0])
    by_hand = 0.75 * np.log(0.25) + 0.5 * np.log(0.5) + 0.25 * np.log(0.75)
    assert scores["modified entropy"] == pytest.approx([by_hand, 0])


def test_modified_entropy_is_worst_for_a_confident_error_where_entropy_is_best():
    scores = baseline_scores([[1.0, 0.0], [0.5, 0.5]], [1, 1])

    assert scores["entropy"][0] > scores["entropy"][1]
    assert scores["modified entropy"][0] < scores["modified entropy"][1]
    assert all(np.isfinite(values).all() for values in scores.values())


@pytest.mark.parametrize("ties", [False, True])
def test_area_agrees_with_scikit_learn(ties):
    random = np.random.default_rng(6)
    forget, unseen = random.normal(0.7, 1, 80), random.normal(0, 1, 130)
    if ties:
        forget, unseen = forget.round(), unseen.round()

    area = evaluate_attack(forget, unseen).auc.value

    assert area == pytest.approx(roc_auc_score(np.repeat([1, 0], [80, 130]), np.r_[forget, unseen]), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1.0, -2.0])
def test_the_interval_of_the_area_covers(shift):
    random = np.random.default_rng(7)
    truth = stats.norm.cdf(shift / np.sqrt(2))

    hits = sum(
        truth in evaluate_attack(random.normal(shift, 1, 60), random.normal(0, 1, 40)).auc.interval for _ in range(400)
    )

    assert 0.92 <= hits / 400 <= 0.98


def test_separated_and_tied_scores_have_intervals_with_width():
    separated = evaluate_attack(np.arange(20) + 100.0, np.arange(30.0)).auc
    reversed_ = evaluate_attack(np.arange(20.0), np.arange(30) + 100.0).auc
    tied = evaluate_attack(np.ones(20), np.ones(30)).auc

    assert (separated.value, reversed_.value, tied.value) == (1, 0, 0.5)
    assert separated.interval.low == pytest.approx(0.025 ** (1 / 20))
    assert reversed_.interval.high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert tied.interval.low < 0.45
    assert tied.interval.high > 0.55


def test_true_positives_at_a_low_rate_by_hand():
    unseen = np.arange(1000.0)
    forget = np.r_[np.full(30, 998.5), np.full(20, 2000.0), np.zeros(50)]

    first, second = evaluate_attack(forget, unseen).low_rates

    assert (first.limit, second.limit) == (0.001, 0.01)
    assert first.above.true_positive_rate.value == 0.5
    assert first.above.false_positive_rate.value == 0.001
    assert first.above.true_positive_rate.interval == clopper_pearson(50, 100)
    assert first.below.true_positive_rate.value == 0.5
    assert second.above.false_positive_rate.value == 0.01


def test_a_rate_that_too_few_unseen_examples_could_show_is_none():
    evaluation = evaluate_attack(np.arange(50.0), np.arange(150.0))

    assert evaluation.low_rates[0].above is None
    assert evaluation.low_rates[0].below is None
    assert evaluation.low_rates[1].above is not None


def test_a_tie_at_the_threshold_counts_as_no_detection():
    """All scores equal: a threshold below them would flag every unseen example, so nothing is detected."""
    point = evaluate_attack(np.ones(100), np.ones(1000)).low_rates[0].above

    assert point.true_positive_rate.value == 0
    assert point.false_positive_rate.value == 0


def test_clopper_pearson_agrees_with_scipy():
    for successes, count in [(0, 17), (3, 17), (17, 17), (1, 1000)]:
        expected = stats.binomtest(successes, count).proportion_ci(method="exact")
        interval = clopper_pearson(successes, count)
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_every_point_of_the_curve_lies_on_that_of_scikit_learn(ties):
    random = np.random.default_rng(8)
    forget, unseen = random.normal(1, 1, 900), random.normal(0, 1, 2000)
    if ties:
        forget, unseen = forget.round(1), unseen.round(1)

    curve = evaluate_attack(forget, unseen).above

    false, true, _ = roc_curve(np.repeat([1, 0], [900, 2000]), np.r_[forget, unseen], drop_intermediate=False)
    best = {rate: true[false == rate].max() for rate in np.unique(false)}
    rates = curve.false_positive_rates
    assert len(rates) <= 200
    assert curve.true_positive_rates == pytest.approx([best[rate] for rate in rates], abs=1e-12)
    assert rates[:50] == np.unique(false)[:50].tolist()
    assert (rates[-1], curve.true_positive_rates[-1]) == (1, 1)


def test_over_forgetting_is_seen_from_below():
    random = np.random.default_rng(9)
    evaluation = evaluate_attack(random.normal(-3, 1, 500), random.normal(0, 1, 1000))

    assert evaluation.auc.interval.high < 0.1
    assert evaluation.low_rates[1].above.true_positive_rate.value < 0.02
    assert evaluation.low_rates[1].below.true_positive_rate.value > 0.5
    assert evaluation.epsilon.lower_bound > 2
    assert evaluation.below.true_positive_rates[5] > 0.3


def _gaussian_epsilon(shift, delta):
    def excess(epsilon):
        first = stats.norm.cdf(shift / 2 - epsilon / shift)
        return first - np.exp(epsilon) * stats.norm.cdf(-shift / 2 - epsilon / shift) - delta

    return optimize.brentq(excess, 0, 50)


@pytest.mark.parametrize(("shift", "delta"), [(0.1, 0.03), (1.0, 1e-5), (1.0, 0.1), (2.0, 0.2)])
def test_the_bound_exceeds_the_true_epsilon_of_a_gaussian_mechanism_at_most_once_in_twenty(shift, delta):
    random = np.random.default_rng(10)
    truth = _gaussian_epsilon(shift, delta)
    forget, unseen = random.normal(shift, 1, (300, 2000)), random.normal(0, 1, (400, 2000))

    bounds = epsilon_lower_bounds(forget, unseen, delta=delta)

    assert (bounds > truth).mean() <= 0.05


def test_the_bound_holds_for_a_mechanism_whose_epsilon_is_reached_at_every_threshold():
    """Randomised response: there are two scores only, so that ties are everywhere."""
    random = np.random.default_rng(11)
    forget, unseen = (random.random((300, 2000)) < share for share in (0.75, 0.25))

    bounds = epsilon_lower_bounds(forget.astype(float), unseen.astype(float), delta=0.0)

    assert (bounds > np.log(3)).mean() <= 0.05
    assert bounds.mean() > 0.5


def test_the_bound_grows_with_the_leak_up_to_the_largest_that_can_be_shown():
    random = np.random.default_rng(12)
    evaluations = [evaluate_attack(random.normal(shift, 1, 800), random.normal(0, 1, 1000)) for shift in (0, 1, 2, 50)]

    bounds = [evaluation.epsilon.lower_bound for evaluation in evaluations]
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.1
    assert bounds[-1] == pytest.approx(evaluations[-1].epsilon.largest, abs=1e-9)


def test_evaluations_survive_writing_and_reading():
    evaluation = evaluate_attack([1, np.inf, 2.5], [-np.inf, 0.5, 0.7, 3])

    assert type(evaluation).model_validate_json(evaluation.model_dump_json()) == evaluation


def test_bad_input_is_refused_by_name():
    audited, population, oracles, population_oracles = _signals(13, 5, 20, (3, 5), (3, 20))

    with pytest.raises(SettingError, match=r"offline_a must lie between 0 and 1, not 1\.5"):
        rmia(audited, population, oracles, population_oracles, offline_a=1.5)
    with pytest.raises(SettingError, match=r"gamma must be at least 1 and finite, not 0\.5"):
        rmia(audited, population, oracles, population_oracles, gamma=0.5)
    with pytest.raises(ShapeError, match="oracle signals are of 4 examples, the others of 5"):
        rmia(audited, population, oracles[:, :4], population_oracles)
    with pytest.raises(ShapeError, match=r"\(models, examples\)"):
        rmia(audited, population, oracles[0], population_oracles)
    with pytest.raises(NonFiniteDataError, match="1 of 5 audited signals are NaN"):
        u_lira([0, 1, 2, np.nan, 4], oracles, oracles)
    with pytest.raises(SettingError, match="at least 2 oracle models are needed, not 1"):
        u_lira(audited, oracles, oracles[:1])
    with pytest.raises(SettingError, match="at least 3"):
        u_lira_left_out(oracles, oracles[:2])
    with pytest.raises(DataError, match="sum to 1"):
        baseline_scores([[2.0, -1.0]], [0])
    with pytest.raises(LabelError, match="from 0 to 1"):
        baseline_scores([[0.5, 0.5]], [2])
    with pytest.raises(ShapeError, match="probabilities must be"):
        baseline_scores([0.5, 0.5], [0, 1])
    with pytest.raises(SettingError, match="at least 2 scores"):
        evaluate_attack([1.0], [1.0, 2.0])
    with pytest.raises(NonFiniteDataError, match="1 of 2 unseen scores are NaN"):
        evaluate_attack([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(SettingError, match="delta"):
        evaluate_attack([1.0, 2.0], [1.0, 2.0], delta=1.0)
    with pytest.raises(SettingError, match="false positive rates"):
        evaluate_attack([1.0, 2.0], [1.0, 2.0], limits=[0.0])
