"""Membership inference, example by example: attacks that give scores, and what scores show.

A score is larger for an example that the audited model was trained on. Signals are logits of a probability,
log(p / (1 - p)), as `Task.signal` gives them; they are clipped to ±100, about the range of a probability in single
precision, so that a masked logit stays a number. What scores show, `expunge.audit.attack_scores` tells.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from expunge.audit.attack_scores import Floats
from expunge.errors import DataError, LabelError, NonFiniteDataError, ReferenceModelError, SettingError, ShapeError

SIGNAL_LIMIT = 100.0


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
        audited: (examples,) signals of the audited model, or (audited models, examples) of several.
        population: (population,) its signals on examples that neither it nor any reference was trained on, or
            (audited models, population).
        oracles: (models, examples) signals of models not trained on the examples, without the audited one.
        population_oracles: (models, population) signals of the same oracles.
        shadows: (models, examples) signals of models trained on the examples; given, the attack is online.
        offline_a: The a above, from 0 (training lifts p to 1) to 1 (it changes nothing). Default 0.3, that of the
            authors' code.
        gamma: How much more than z an example must have gained; at least 1. Default 1, that of the authors' code.

    Returns:
        Scores in [0, 1], of the shape of `audited`.

    Raises:
        SettingError: `offline_a` or `gamma` is out of range, or there are no references.
        ShapeError: Shapes disagree.
        NonFiniteDataError: A signal is NaN.
    """
    if not 0 <= offline_a <= 1:
        raise SettingError(f"offline_a must lie between 0 and 1, not {offline_a!r}")
    if not 1 <= gamma < np.inf:
        raise SettingError(f"gamma must be at least 1 and finite, not {gamma!r}")
    axes = np.ndim(audited)
    own, outside = (
        usable_signals(name, np.atleast_2d(values) if axes == 1 and np.ndim(values) == 1 else values, 2)
        for name, values in (("audited", audited), ("population", population))
    )
    if len(own) != len(outside):
        raise ShapeError(f"signals are of {len(own)} audited models, those of the population of {len(outside)}")
    out = usable_references("oracle", oracles, own.shape[1])
    if shadows is None:
        average = _offline(_mean_log_probability(out), offline_a)
    else:
        inside = usable_references("shadow", shadows, own.shape[1])
        average = np.logaddexp(_mean_log_probability(inside), _mean_log_probability(out)) - np.log(2)
    elsewhere = usable_references("oracles' population", population_oracles, outside.shape[1])
    gained = special.log_expit(own) - average
    compared = np.sort(special.log_expit(outside) - _offline(_mean_log_probability(elsewhere), offline_a))
    scores = [
        np.searchsorted(others, values - np.log(gamma), side="right") / len(others)
        for values, others in zip(gained, compared, strict=True)
    ]
    return scores[0] if axes == 1 else np.stack(scores)


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


def _mean_log_probability(signals: Floats) -> Floats:
    return np.log(special.expit(signals).mean(0))  # signals are clipped, so that no probability underflows


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
