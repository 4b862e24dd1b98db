"""Noise that hides where an iteration began: the accountant of noisy fine-tuning.

Two runs of x ← (1 - d) x - η clip(gradient, C1) + N(0, σ²) on the same data differ in their start alone, by 2 C0 at
most.
Nothing is asked of the gradient but that it is clipped. Source: shifted Rényi divergence, Feldman, Mironov, Talwar and
Thakurta 2018 (arXiv 1808.06651); its use for unlearning, Koloskova et al. 2025. `docs/guarantees.md` derives the bound.
"""

import math

from scipy.optimize import brentq, minimize_scalar

from expunge.errors import SettingError
from expunge.privacy.mechanisms import require_request

_ORDERS = (-12.0, 25.0)
"""Logarithm of α - 1: the orders among which the best is sought; each of them gives a valid bound."""


def iteration_shift(
    steps: int, *, model_norm: float, gradient_norm: float, learning_rate: float, weight_decay: float = 0.0
) -> float:
    """The μ·σ of the last iterate: its Rényi divergence of order α is at most α μ² / 2, for every α.

    μ σ = (2 C0 ρᵀ + 2 η C1 (1 + ρ + … + ρᵀ⁻¹)) / √(1 + ρ² + … + ρ²⁽ᵀ⁻¹⁾), with ρ = 1 - η times the weight decay.

    Args:
        steps: T.
        model_norm: C0, norm that both starts are clipped to.
        gradient_norm: C1, norm that each gradient is clipped to.
        learning_rate: η.
        weight_decay: Strength of the pull to zero.

    Raises:
        SettingError: The decay of a step is 1 or more.
    """
    decay = learning_rate * weight_decay
    if not 0 <= decay < 1:
        raise SettingError(f"learning_rate times weight_decay must be below 1, not {decay:g}; lower one of them")
    if decay == 0:
        return (2 * model_norm + 2 * learning_rate * gradient_norm * steps) / math.sqrt(steps)
    falling = steps * math.log1p(-decay)
    pull = 2 * model_norm * math.exp(falling) - 2 * learning_rate * gradient_norm * math.expm1(falling) / decay
    return pull / math.sqrt(-math.expm1(2 * falling) / (decay * (2 - decay)))


def renyi_delta(epsilon: float, ratio: float) -> float:
    """A delta at `epsilon` for two distributions whose Rényi divergence of every order α is at most α ratio² / 2.

    The smallest over α of e^((α-1)(α μ²/2 - ε)) (1 - 1/α)^(α-1) / α: Canonne, Kamath and Steinke 2020
    (arXiv 2004.00010), proposition 12.
    """
    return min(1.0, math.exp(_log_delta(epsilon, ratio)))


def renyi_ratio(epsilon: float, delta: float) -> float:
    """The largest μ at which `renyi_delta` is at most `delta`.

    Raises:
        SettingError: epsilon is not above 0, or delta not between 0 and 1.
    """
    require_request(epsilon, delta)

    def excess(log_ratio: float) -> float:
        return _log_delta(epsilon, math.exp(log_ratio)) - math.log(delta)

    low = high = 0.0
    while excess(low) > 0:
        low -= 1
    while excess(high) < 0:
        high += 1
    ratio = math.exp(float(brentq(excess, low, high, xtol=1e-12)))  # pyright: ignore[reportArgumentType]
    while _log_delta(epsilon, ratio) > math.log(delta):  # the root may lie a rounding error on the wrong side
        ratio *= 1 - 1e-9
    return ratio


def _log_delta(epsilon: float, ratio: float) -> float:
    def at(log_excess: float) -> float:
        above = math.exp(log_excess)  # α - 1
        order = above + 1
        loss = above * (order * ratio**2 / 2 - epsilon)
        return loss + above * (log_excess - math.log1p(above)) - math.log1p(above)

    found = minimize_scalar(at, bounds=_ORDERS, method="bounded", options={"xatol": 1e-10})  # pyright: ignore[reportArgumentType, reportCallIssue]
    return float(found.fun)  # pyright: ignore[reportAttributeAccessIssue]
