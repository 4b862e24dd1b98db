"""The analytic Gaussian mechanism: noise, privacy loss and its probability, each from the other two.

Source: Balle and Wang 2018, *Improving the Gaussian Mechanism for Differential Privacy* (arXiv 1805.06530), theorem 8.
With s = sigma / sensitivity, the smallest delta at epsilon is Φ(1/(2s) - εs) - e^ε Φ(-1/(2s) - εs). It is exact for
two Gaussians whose means are one sensitivity apart and holds for every epsilon, unlike the classical formula.
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import cast

from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr

from expunge.errors import SettingError

_LARGEST_RATIO = 1e150
_TOLERANCE = 1e-14


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Smallest standard deviation that gives (epsilon, delta); 0 where the sensitivity is 0.

    Raises:
        SettingError: epsilon is not above 0, delta not between 0 and 1, or the sensitivity negative.

    Example:
        >>> round(gaussian_sigma(1.0, 1e-5), 4)
        3.7306
    """
    require_request(epsilon, delta)
    _require_sensitivity(sensitivity)
    wanted = math.log(delta)

    def excess(log_ratio: float) -> float:
        return _log_delta(epsilon, math.exp(log_ratio)) - wanted

    low = high = 0.0
    while excess(low) < 0:
        low -= 1
    while excess(high) > 0:
        high += 1
        if high > math.log(_LARGEST_RATIO):
            raise SettingError(f"no noise gives epsilon {epsilon} and delta {delta}; use a larger epsilon or delta")
    ratio = math.exp(_root(excess, low, high))
    while _log_delta(epsilon, ratio) > wanted:  # the root may lie a rounding error on the wrong side
        ratio *= 1 + 1e-13
    return ratio * sensitivity


def gaussian_delta(epsilon: float, sigma: float, sensitivity: float = 1.0) -> float:
    """Smallest delta at which noise of `sigma` gives `epsilon`; epsilon may be 0.

    Raises:
        SettingError: epsilon or the sensitivity is negative, or sigma not above 0.
    """
    _require_sensitivity(sensitivity)
    if not 0 <= epsilon < math.inf:
        raise SettingError(f"epsilon must be 0 or more and finite, not {epsilon!r}")
    _require_sigma(sigma)
    return math.exp(_log_delta(epsilon, sigma / sensitivity)) if sensitivity else 0.0


def gaussian_epsilon(delta: float, sigma: float, sensitivity: float = 1.0) -> float:
    """Smallest epsilon at which noise of `sigma` gives `delta`; 0 where the two can hardly be told apart.

    Raises:
        SettingError: delta is not between 0 and 1, sigma not above 0, or the sensitivity negative.
    """
    _require_sensitivity(sensitivity)
    _require_delta(delta)
    _require_sigma(sigma)
    if not sensitivity:
        return 0.0
    ratio, wanted = sigma / sensitivity, math.log(delta)

    def excess(epsilon: float) -> float:
        return _log_delta(epsilon, ratio) - wanted

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    epsilon = _root(excess, 0.0, high)
    while excess(epsilon) > 0:
        epsilon = math.nextafter(epsilon, math.inf) * (1 + 1e-13)
    return epsilon


def require_request(epsilon: float, delta: float, examples: int | None = None) -> None:
    """Refuse what is no guarantee.

    Args:
        epsilon: Must be above 0 and finite.
        delta: Must lie between 0 and 1 and, where `examples` is given, below one over it: at 1/n a mechanism that
            publishes one person's data at random would pass.
        examples: Size of the training set.

    Raises:
        SettingError: One of them cannot be used.
    """
    _require_epsilon(epsilon)
    _require_delta(delta)
    if examples is not None and delta >= 1 / examples:
        raise SettingError(
            f"delta is {delta:g}, which must be below 1/n = {1 / examples:g} of {examples} training examples: "
            "publishing one example at random would pass for private; use 1/n² or less"
        )


def require_meaning(epsilon: float, limit: float) -> None:
    """Refuse a privacy loss so large that a certificate of it says next to nothing.

    Raises:
        SettingError: epsilon is above `limit`.
    """
    if epsilon > limit:
        raise SettingError(
            f"epsilon is {epsilon:g}, above epsilon_limit ({limit:g}): a model may be e^{epsilon:g} times as likely to "
            "come from one training set as from the other, which guarantees next to nothing; use a smaller epsilon, or "
            "raise the limit if that is what you want to certify"
        )


def _log_delta(epsilon: float, ratio: float) -> float:
    """Logarithm of delta, without cancellation: for y < x ≤ 0, e^ε φ(y) = φ(x), which leaves a difference of erfcx."""
    half = 0.5 / ratio
    upper, lower = half - epsilon * ratio, -half - epsilon * ratio
    if upper <= 0:
        gap = float(erfcx(-upper / math.sqrt(2)) - erfcx(-lower / math.sqrt(2)))
        return -(upper**2) / 2 + math.log(gap / 2) if gap > 0 else -math.inf
    first = float(log_ndtr(upper))
    difference = epsilon + float(log_ndtr(lower)) - first
    return first + math.log(-math.expm1(difference)) if difference < 0 else -math.inf


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return cast(float, brentq(function, low, high, xtol=_TOLERANCE))


def _require_epsilon(epsilon: float) -> None:
    if not _is_number(epsilon) or not 0 < epsilon < math.inf:
        raise SettingError(f"epsilon must be above 0 and finite, not {epsilon!r}")


def _require_delta(delta: float) -> None:
    if not _is_number(delta) or not 0 < delta < 1:
        raise SettingError(f"delta must lie between 0 and 1, not {delta!r}")


def _require_sigma(sigma: float) -> None:
    if not _is_number(sigma) or not 0 < sigma < math.inf:
        raise SettingError(f"sigma must be above 0 and finite, not {sigma!r}")


def _require_sensitivity(sensitivity: float) -> None:
    if not 0 <= sensitivity < math.inf:
        raise SettingError(f"the sensitivity must be 0 or more and finite, not {sensitivity!r}")


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)
