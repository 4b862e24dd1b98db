"""What scores of a membership attack show: area, low false positive rates, and a bound on epsilon.

Scores of forget examples are held against scores of examples that were never seen, or against scores that an oracle
which took no part in the references gives to the same forget examples.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from expunge.audit.intervals import LEVEL, Estimate, Interval, Part
from expunge.errors import NonFiniteDataError, SettingError, ShapeError

Floats = NDArray[np.float64]

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
        epsilon: A lower bound; None where scores of one model were held against those of another.
        above: Where large scores are taken for membership.
        below: Where small scores are.
    """

    forget_examples: int
    unseen_examples: int
    auc: Estimate
    low_rates: list[LowRate]
    epsilon: EpsilonBound | None
    above: RocCurve
    below: RocCurve


def evaluate_attack(
    forget: ArrayLike, unseen: ArrayLike, *, delta: float = 1e-5, limits: Sequence[float] = LOW_RATES
) -> AttackEvaluation:
    """What scores of forget examples against scores of unseen examples show, in both directions.

    Examples count as independent draws, and unseen ones must be of the same kind as forget ones: of the same classes,
    or the attack measures the difference in kind. Scores that two models give to the same examples are not independent:
    each model's move together, so that intervals and bounds would be far too narrow; give those no `evaluate_attack`
    but with `across_models`.

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
        auc=area(seen, others),
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


def across_models(found: AttackEvaluation, oracles: Sequence[AttackEvaluation]) -> AttackEvaluation:
    """The same figures with intervals that say how much they vary from model to model, and no bound of epsilon.

    For scores of one model that are held against those of another on the same examples. Each interval is the value
    plus or minus t(m-1, .975) standard deviations of the oracles' figures; the ends stay within 0 and 1.

    Args:
        found: Of the unlearned model.
        oracles: Of oracles, in the same way, two at least.
    """

    def varied(value: float, others: Sequence[float]) -> Estimate:
        half = float(stats.t.ppf(0.5 + LEVEL / 2, len(others) - 1) * np.std(others, ddof=1))
        return Estimate(value=value, interval=Interval(low=max(value - half, 0.0), high=min(value + half, 1.0)))

    def point(place: int, side: str) -> OperatingPoint | None:
        own, others = ([getattr(each.low_rates[place], side) for each in models] for models in ([found], oracles))
        if any(each is None for each in (*own, *others)):
            return None
        return OperatingPoint(
            **{
                name: varied(getattr(own[0], name).value, [getattr(each, name).value for each in others])
                for name in ("true_positive_rate", "false_positive_rate")
            }
        )

    return found.model_copy(
        update={
            "auc": varied(found.auc.value, [oracle.auc.value for oracle in oracles]),
            "low_rates": [
                LowRate(limit=rate.limit, above=point(place, "above"), below=point(place, "below"))
                for place, rate in enumerate(found.low_rates)
            ],
            "epsilon": None,
        }
    )


def area(forget: ArrayLike, unseen: ArrayLike) -> Estimate:
    """Area under the ROC curve, with the interval of DeLong et al. 1988 on the logit scale.

    Args:
        forget: (examples,) scores.
        unseen: (other examples,) scores.

    Raises:
        As `evaluate_attack`.
    """
    seen, others = _scores("forget", forget), _scores("unseen", unseen)
    ranks = stats.rankdata(np.concatenate([seen, others]))
    wins = (ranks[: len(seen)] - stats.rankdata(seen)) / len(others)
    losses = 1 - (ranks[len(seen) :] - stats.rankdata(others)) / len(seen)
    value = float(wins.mean())
    variance = float(wins.var(ddof=1) / len(seen) + losses.var(ddof=1) / len(others))
    if variance < 1e-15:  # separated or tied altogether: as many pairs as can be disjoint all gave the same result
        slack = 1 - ((1 - LEVEL) / 2) ** (1 / min(len(seen), len(others)))
        return Estimate(value=value, interval=Interval(low=value * (1 - slack), high=value + (1 - value) * slack))
    half = stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt(variance) / (value * (1 - value))
    low, high = special.expit(special.logit(value) + np.array([-half, half]))
    return Estimate(value=value, interval=Interval(low=float(low), high=float(high)))


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
