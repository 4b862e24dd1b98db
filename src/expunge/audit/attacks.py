"""Membership inference, example by example: attacks that give scores, and what scores show.

A score is larger for an example that the audited model was trained on. Signals are logits of a probability,
log(p / (1 - p)), as `Task.signal` gives them; they are clipped to ±100, about the range of a probability in single
precision, so that a masked logit stays a number. Scores of forget examples are then held against scores of
examples that were never seen, or against scores that an oracle which took no part in the references gives to the same
forget examples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from expunge.audit.intervals import LEVEL, Estimate, Interval, Part
from expunge.errors import DataError, LabelError, NonFiniteDataError, ReferenceModelError, SettingError, ShapeError

Floats = NDArray[np.float64]

SIGNAL_LIMIT = 100.0
LOW_RATES = (0.001, 0.01)
_ROC_POINTS = 200


class OperatingPoint(Part):
    """An attack at one threshold; intervals by Clopper-Pearson."""

    true_positive_rate: Estimate
    false_positive_rate: Estimate


class LowRate(Part):
    """The best that an attack reaches with at most so many false positives; None where there are too few unseen.

    Attributes:
        limit: Largest false positive rate.
        above: Where large scores are taken for membership.
        below: Where small scores are: an over-forgotten example leaks too.
    """

    limit: float
    above: OperatingPoint | None
    below: OperatingPoint | None


class RocCurve(Part):
    """At each false positive rate the largest true positive rate; all points at low rates, then fewer."""

    false_positive_rates: list[float]
    true_positive_rates: list[float]


class EpsilonBound(Part):
    """What scores show of epsilon.

    Attributes:
        lower_bound: Epsilon is at least this, with 95 % confidence; 0 where nothing is shown.
        largest: What perfect separation of as many examples would show.
        delta: The delta of (epsilon, delta).
    """

    lower_bound: float
    largest: float
    delta: float


class AttackEvaluation(Part):
    """What an attack's scores show.

    Attributes:
        forget_examples: Number of scores of forget examples.
        unseen_examples: Number of scores of unseen examples.
        auc: Area under the ROC curve; far from one half in either direction is a leak. Interval by DeLong et al. 1988
            on the logit scale.
        low_rates: True positives at low false positive rates.
        epsilon: A lower bound.
        above: Where large scores are taken for membership.
        below: Where small scores are.
    """

    forget_examples: int
    unseen_examples: int
    auc: Estimate
    low_rates: list[LowRate]
    epsilon: EpsilonBound
    above: RocCurve
    below: RocCurve


def rmia(
    audited: ArrayLike,
    population: ArrayLike,
    oracles: ArrayLike,
    population_oracles: ArrayLike,
    *,
    shadows: ArrayLike | None = None,
    offline_a: float = 0.3,
    gamma: float = 1.0,
) -> Floats:
    """RMIA: the share of population examples z for which (p(x) / P(x)) / (p(z) / P(z)) is at least gamma.

    p is the audited model's probability, P the average one over models trained with and without the example. Online,
    P(x) = (p_in + p_out) / 2, means over the shadows and over the oracles. Offline, and always for z, which no model
    was trained on, P = ((1 + a) p_out + (1 - a)) / 2. Source: Zarifzadeh et al. 2024 (arXiv 2312.03262), algorithm 1.

    To compare with an oracle, leave it out of the references of both models: then only the audited model differs.

    Args:
        audited: (examples,) signals of the audited model.
        population: (population,) its signals on examples that neither it nor any reference was trained on.
        oracles: (models, examples) signals of models not trained on the examples, without the audited one.
        population_oracles: (models, population) signals of the same oracles.
        shadows: (models, examples) signals of models trained on the examples; given, the attack is online.
        offline_a: The a above, from 0 (training lifts p to 1) to 1 (it changes nothing). Default 0.3, that of the
            authors' code.
        gamma: How much more than z an example must have gained; at least 1. Default 1, that of the authors' code.

    Returns:
        (examples,) scores in [0, 1].

    Raises:
        SettingError: `offline_a` or `gamma` is out of range, or there are no references.
        ShapeError: Shapes disagree.
        NonFiniteDataError: A signal is NaN.
    """
    if not 0 <= offline_a <= 1:
        raise SettingError(f"offline_a must lie between 0 and 1, not {offline_a!r}")
    if not 1 <= gamma < np.inf:
        raise SettingError(f"gamma must be at least 1 and finite, not {gamma!r}")
    own, outside = usable_signals("audited", audited, 1), usable_signals("population", population, 1)
    out = usable_references("oracle", oracles, len(own))
    if shadows is None:
        average = _offline(_mean_log_probability(out), offline_a)
    else:
        inside = usable_references("shadow", shadows, len(own))
        average = np.logaddexp(_mean_log_probability(inside), _mean_log_probability(out)) - np.log(2)
    elsewhere = usable_references("oracles' population", population_oracles, len(outside))
    gained = special.log_expit(own) - average
    compared = np.sort(special.log_expit(outside) - _offline(_mean_log_probability(elsewhere), offline_a))
    return np.searchsorted(compared, gained - np.log(gamma), side="right") / len(compared)


def u_lira(audited: ArrayLike, unlearned: ArrayLike, oracles: ArrayLike, *, per_example_from: int = 32) -> Floats:
    """U-LiRA: log-likelihood ratio of each signal, trained on and unlearned against never trained on.

    For each example a Gaussian is fitted to the signals of each kind of model. With few models their variances are
    pooled over examples, within examples, so that differences between examples do not widen them. No standard
    deviation is taken to be below one hundredth of the oracles' pooled one: a model that gives one fixed answer has
    none. Source: Hayes et al. 2024 (arXiv 2403.01218); Carlini et al. 2022 for the pooling.

    Args:
        audited: (examples,) signals of a model that no fitted model may be.
        unlearned: (models, examples) signals of models that were trained on the examples and then unlearned them.
        oracles: (models, examples) signals of models never trained on them.
        per_example_from: With so many models of each kind, each example has variances of its own.

    Returns:
        (examples,) log-likelihood ratios in nats, above 0 where the example looks unlearned rather than never seen.

    Raises:
        SettingError: There are fewer than two models of a kind.
        ShapeError: Shapes disagree.
        NonFiniteDataError: A signal is NaN.
        ReferenceModelError: The oracles agree exactly on every example.
    """
    own = usable_signals("audited", audited, 1)
    inside = usable_references("unlearned", unlearned, len(own), fewest=2)
    outside = usable_references("oracle", oracles, len(own), fewest=2)
    return _likelihood_ratio(own, inside, outside, per_example_from)


def u_lira_left_out(unlearned: ArrayLike, oracles: ArrayLike, *, per_example_from: int = 32) -> tuple[Floats, Floats]:
    """U-LiRA of each unlearned model and of an oracle, with both left out of the fit.

    Leaving out one of each kind keeps the fits of both scores equal. Leaving out only the model that is scored fits
    the other kind to one model more, which alone would tell the two apart.

    Args:
        unlearned: (models, examples), as in `u_lira`, three at least.
        oracles: (models, examples), three at least.
        per_example_from: As in `u_lira`.

    Returns:
        Scores of the unlearned models and of the oracles, each (pairs, examples); there are as many pairs as models
        of the rarer kind.
    """
    inside = usable_references("unlearned", unlearned, None, fewest=3)
    outside = usable_references("oracle", oracles, inside.shape[1], fewest=3)
    scores = [
        [
            _likelihood_ratio(own, np.delete(inside, pair, 0), np.delete(outside, pair, 0), per_example_from)
            for own in (inside[pair], outside[pair])
        ]
        for pair in range(min(len(inside), len(outside)))
    ]
    return np.stack([pair[0] for pair in scores]), np.stack([pair[1] for pair in scores])


def baseline_scores(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, Floats]:
    """Scores that need no reference model, by name.

    `loss`: log-probability of the label. `confidence`: the largest probability (Salem et al. 2019). `entropy`: that of
    the prediction, negated. `modified entropy`: that of Song & Mittal 2021 (arXiv 2003.10595), equation 8, negated.

    Args:
        probabilities: (examples, classes) predicted probabilities.
        labels: (examples,) whole numbers.

    Raises:
        ShapeError: Shapes disagree.
        DataError: Rows are not probabilities.
        LabelError: A label is outside the classes.
    """
    shares, places = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if shares.ndim != 2 or places.shape != shares.shape[:1]:
        raise ShapeError(
            f"probabilities must be (examples, classes) and labels (examples,), not {shares.shape} and {places.shape}"
        )
    if not ((shares >= 0).all() and np.allclose(shares.sum(1), 1, rtol=0, atol=1e-3)):
        raise DataError("rows of probabilities must be at least 0 and sum to 1; apply a softmax to logits")
    if not (np.isin(places, np.arange(shares.shape[1]))).all():
        raise LabelError(f"labels must be whole numbers from 0 to {shares.shape[1] - 1}")
    rows, columns = np.arange(len(places)), places.astype(np.int64)
    log, log_other = _safe_log(shares), _safe_log(1 - shares)
    own, surprise = shares[rows, columns], shares * log_other
    surprise[rows, columns] = (1 - own) * log[rows, columns]
    return {
        "loss": log[rows, columns],
        "confidence": shares.max(1),
        "entropy": (shares * log).sum(1),
        "modified entropy": surprise.sum(1),
    }


def evaluate_attack(
    forget: ArrayLike, unseen: ArrayLike, *, delta: float = 1e-5, limits: Sequence[float] = LOW_RATES
) -> AttackEvaluation:
    """What scores of forget examples against scores of unseen examples show, in both directions.

    Examples count as independent draws, and unseen ones must be of the same kind as forget ones: of the same classes,
    or the attack measures the difference in kind. Scores of an oracle on the same forget examples are always of the
    same kind; they are not independent, which makes the intervals wider than they need be where the two move together.

    Args:
        forget: (examples,) scores; ties and infinities are allowed.
        unseen: (other examples,) scores.
        delta: For the bound on epsilon.
        limits: False positive rates at which the true positive rate is read.

    Raises:
        SettingError: There are fewer than two scores, or `delta` or a limit is out of range.
        ShapeError: Scores are not a vector.
        NonFiniteDataError: A score is NaN.
    """
    seen, others = _scores("forget", forget), _scores("unseen", unseen)
    if any(not 0 < limit < 1 for limit in limits):
        raise SettingError(f"false positive rates must lie between 0 and 1, not {list(limits)}")
    return AttackEvaluation(
        forget_examples=len(seen),
        unseen_examples=len(others),
        auc=_area(seen, others),
        low_rates=[
            LowRate(
                limit=limit,
                above=_operating_point(seen, others, limit),
                below=_operating_point(-seen, -others, limit),
            )
            for limit in limits
        ],
        epsilon=EpsilonBound(
            lower_bound=float(epsilon_lower_bounds(seen, others, delta=delta)),
            largest=_largest_epsilon(len(seen), len(others), delta),
            delta=delta,
        ),
        above=_roc_curve(seen, others),
        below=_roc_curve(-seen, -others),
    )


def epsilon_lower_bounds(forget: Floats, unseen: Floats, *, delta: float = 1e-5) -> Floats:
    """Lower bounds of epsilon with 95 % confidence, each for one column alone.

    (epsilon, delta)-indistinguishability bounds the share of one group beyond any threshold by e^epsilon times the
    share of the other, plus delta. Thresholds are the scores with 0, 1, 2, 4, ... of their own group beyond, for both
    groups and both directions. These ranks do not depend on the scores, so that a Clopper-Pearson bound holds for each,
    and Bonferroni's correction for all of them together. Ties are broken at random, with a fixed seed.

    Args:
        forget: (scores, ...)
        unseen: (other scores, ...)
        delta: At least 0 and below 1.

    Returns:
        (...) bounds, at least 0.
    """
    if not 0 <= delta < 1:
        raise SettingError(f"delta must be at least 0 and below 1, not {delta!r}")
    error = _error_of_one_rate(len(forget), len(unseen))
    seen, others = np.split(_ranks_of(np.concatenate([forget, unseen])), [len(forget)])
    sides = ((seen, others), (others, seen), (-seen, -others), (-others, -seen))
    return np.max([_tail_bound(common, rare, delta, error) for common, rare in sides], axis=0)


def usable_signals(name: str, values: ArrayLike, axes: int) -> Floats:
    """Signals in double precision, clipped to ±100.

    Raises:
        ShapeError: The number of axes is another.
        NonFiniteDataError: One is NaN.
    """
    signals = np.asarray(values, dtype=np.float64)
    if signals.ndim != axes or signals.size == 0:
        form = "(examples,)" if axes == 1 else "(models, examples)"
        raise ShapeError(f"the {name} signals must be {form} and not empty, not of shape {signals.shape}")
    if np.isnan(signals).any():
        raise NonFiniteDataError(
            f"{int(np.isnan(signals).sum())} of {signals.size} {name} signals are NaN; a model that returns NaN "
            "cannot be audited: look for diverged training"
        )
    return np.clip(signals, -SIGNAL_LIMIT, SIGNAL_LIMIT)


def usable_references(name: str, values: ArrayLike, examples: int | None, fewest: int = 1) -> Floats:
    """Signals of several models, (models, examples), as `usable_signals`.

    Raises:
        SettingError: There are fewer than `fewest` models.
        ShapeError: They are not of `examples` examples.
        NonFiniteDataError: One is NaN.
    """
    signals = usable_signals(name, values, 2)
    if len(signals) < fewest:
        raise SettingError(f"at least {fewest} {name} models are needed, not {len(signals)}; train or pass more")
    if examples is not None and signals.shape[1] != examples:
        raise ShapeError(f"the {name} signals are of {signals.shape[1]} examples, the others of {examples}")
    return signals


def clopper_pearson(successes: int, count: int) -> Interval:
    """Exact 95 % interval of a share. Source: Clopper & Pearson 1934."""
    error = (1 - LEVEL) / 2
    return Interval(
        low=float(_share_at_least(successes, count, error)), high=float(_share_at_most(successes, count, error))
    )


def _scores(name: str, values: ArrayLike) -> Floats:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise ShapeError(f"the {name} scores must be (examples,), not of shape {scores.shape}")
    if len(scores) < 2:
        raise SettingError(f"an attack is evaluated on at least 2 scores of each kind, not {len(scores)} ({name})")
    if np.isnan(scores).any():
        raise NonFiniteDataError(f"{int(np.isnan(scores).sum())} of {len(scores)} {name} scores are NaN")
    return scores


def _mean_log_probability(signals: Floats) -> Floats:
    return special.logsumexp(special.log_expit(signals), axis=0) - np.log(len(signals))


def _offline(log_out: Floats, a: float) -> Floats:
    return np.logaddexp(np.log((1 + a) / 2) + log_out, np.log((1 - a) / 2) if a < 1 else -np.inf)


def _likelihood_ratio(own: Floats, inside: Floats, outside: Floats, per_example_from: int) -> Floats:
    pooled = outside.var(0, ddof=1).mean()
    if pooled == 0:
        raise ReferenceModelError(
            "the oracles give the same signal on every example, so nothing is known of how retraining varies; check "
            "that the recipe uses its seed"
        )
    alone = min(len(inside), len(outside)) >= per_example_from
    scores = [
        stats.norm.logpdf(own, side.mean(0), _deviation(side, alone, 1e-4 * pooled)) for side in (inside, outside)
    ]
    return scores[0] - scores[1]


def _deviation(signals: Floats, alone: bool, least: float) -> Floats:
    variances = signals.var(0, ddof=1)
    return np.sqrt(np.maximum(variances if alone else variances.mean(), least))


def _safe_log(shares: Floats) -> Floats:
    return np.log(np.maximum(shares, np.finfo(np.float64).tiny))


def _area(seen: Floats, others: Floats) -> Estimate:
    ranks = stats.rankdata(np.concatenate([seen, others]))
    wins = (ranks[: len(seen)] - stats.rankdata(seen)) / len(others)
    losses = 1 - (ranks[len(seen) :] - stats.rankdata(others)) / len(seen)
    area = float(wins.mean())
    variance = float(wins.var(ddof=1) / len(seen) + losses.var(ddof=1) / len(others))
    if variance < 1e-15:  # separated or tied altogether: as many pairs as can be disjoint all gave the same result
        slack = 1 - ((1 - LEVEL) / 2) ** (1 / min(len(seen), len(others)))
        return Estimate(value=area, interval=Interval(low=area * (1 - slack), high=area + (1 - area) * slack))
    half = stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt(variance) / (area * (1 - area))
    low, high = special.expit(special.logit(area) + np.array([-half, half]))
    return Estimate(value=area, interval=Interval(low=float(low), high=float(high)))


def _operating_point(seen: Floats, others: Floats, limit: float) -> OperatingPoint | None:
    allowed = int(limit * len(others) + 1e-9)
    if allowed < 1:
        return None
    threshold = np.sort(others)[-1 - allowed]
    return OperatingPoint(
        true_positive_rate=_share(int((seen > threshold).sum()), len(seen)),
        false_positive_rate=_share(int((others > threshold).sum()), len(others)),
    )


def _share(successes: int, count: int) -> Estimate:
    return Estimate(value=successes / count, interval=clopper_pearson(successes, count))


def _roc_curve(seen: Floats, others: Floats) -> RocCurve:
    thresholds = np.unique(others)[::-1]
    false, true = (
        np.append(len(scores) - np.searchsorted(np.sort(scores), thresholds, side="right"), len(scores)) / len(scores)
        for scores in (others, seen)
    )
    kept = np.arange(len(false))
    if len(kept) > _ROC_POINTS:
        half = _ROC_POINTS // 2
        kept = np.unique(np.r_[kept[:half], np.geomspace(half, len(kept) - 1, half).round().astype(np.int64)])
    return RocCurve(false_positive_rates=false[kept].tolist(), true_positive_rates=true[kept].tolist())


def _ranks(count: int) -> NDArray[np.int64]:
    """0, 1, 2, 4, ... up to half of `count`."""
    return np.r_[0, 2 ** np.arange(max(int(np.log2(max(count, 1))), 0))]


def _error_of_one_rate(forget: int, unseen: int) -> float:
    """Bonferroni: each threshold needs two rates, each group gives thresholds in two directions."""
    return (1 - LEVEL) / (4 * (len(_ranks(forget)) + len(_ranks(unseen))))


def _ranks_of(pooled: Floats) -> NDArray[np.int64]:
    """Ranks along the first axis. Whole ties on one side of a threshold would leave nothing between its rates."""
    order = np.lexsort((np.random.default_rng(0).random(pooled.shape), pooled), axis=0)
    return np.argsort(order, axis=0)


def _tail_bound(common: NDArray[np.int64], rare: NDArray[np.int64], delta: float, error: float) -> Floats:
    ranks = _ranks(len(rare))
    thresholds = np.sort(rare, axis=0)[::-1][ranks]
    beyond = (common[None] > thresholds[:, None]).sum(1)  # (ranks, ...)
    most = _share_at_most(ranks, len(rare), error).reshape(-1, *[1] * (common.ndim - 1))
    return _log_ratio(_share_at_least(beyond, len(common), error), most, delta).max(0)


def _largest_epsilon(forget: int, unseen: int, delta: float) -> float:
    error = _error_of_one_rate(forget, unseen)
    pairs = ((forget, unseen), (unseen, forget))
    return max(
        float(_log_ratio(_share_at_least(many, many, error), _share_at_most(0, few, error), delta))
        for many, few in pairs
    )


def _log_ratio(least: Floats, most: Floats, delta: float) -> Floats:
    return np.log(np.maximum((least - delta) / most, 1.0))


def _share_at_least(successes: ArrayLike, count: int, error: float) -> Floats:
    hits = np.asarray(successes)
    return np.where(hits == 0, 0.0, special.betaincinv(np.maximum(hits, 1), count - hits + 1, error))


def _share_at_most(successes: ArrayLike, count: int, error: float) -> Floats:
    return 1 - _share_at_least(count - np.asarray(successes), count, error)
