"""How far weights can be from those of retraining: the bounds that noise is calibrated to.

All distances are L2 (Frobenius) over the weights of a head whose objective F has curvature of at least `l2` everywhere.
`docs/guarantees.md` derives each bound; the letters are those used there.
"""

import math
from dataclasses import dataclass

from expunge.errors import SettingError


@dataclass(frozen=True)
class DistanceBound:
    """A bound on the distance between the weights before noise and those of the reference before noise.

    A gradient of norm g means a distance of at most g / l2 from the optimum, on both sides.

    Attributes:
        residual: Norm of the retained objective's gradient at the weights, or a bound on it.
        reference_residual: Largest gradient norm at which the reference's training may stop.
        l2: Strength of the penalty, (l2/2) ‖w‖².
        shortcut: A bound on the distance to the retained optimum that was had otherwise, where it is smaller.
    """

    residual: float
    reference_residual: float
    l2: float
    shortcut: float = math.inf

    @property
    def distance(self) -> float:
        """The bound."""
        return min(self.residual / self.l2, self.shortcut) + self.reference_residual / self.l2


def newton_remainder(
    step: float, curvature: float, hessian_lipschitz: float, concordance: float, moved: float = 0.0
) -> float:
    """Norm of the gradient that a Newton step leaves because the objective is not quadratic.

    The smaller of two bounds: (M/2) ‖s‖² for a curvature with Lipschitz constant M, and κ φ(κ‖s‖) q for a
    self-concordant loss, where q = sᵀ H s is the data's curvature along the step and φ(t) = (eᵗ - 1 - t) / t². Where q
    was taken at other weights, at most `moved` away, it is at most e^(κ moved) times as large where the step starts.

    Args:
        step: ‖s‖.
        curvature: q, without the penalty.
        hessian_lipschitz: M of one row's loss.
        concordance: κ of one row's loss, with |D³f[a, a, v]| ≤ κ ‖v‖ D²f[a, a].
        moved: How far the weights may be from those that q was taken at.
    """
    by_lipschitz = hessian_lipschitz / 2 * step**2
    reach = concordance * step
    if reach + concordance * moved > _REACH:
        return by_lipschitz
    # the series is used where the formula would cancel; its terms are positive and fall off
    ratio = (math.expm1(reach) - reach) / reach**2 if reach > 1e-2 else 0.5 + reach / 6 + reach**2 / 20
    return min(by_lipschitz, concordance * ratio * max(curvature, 0.0) * math.exp(concordance * moved))


def curvature_drift(
    step: float, curvature: float, moved: float, spread: float, hessian_lipschitz: float, concordance: float
) -> float:
    """Norm of (H - H₀) s where the curvature H₀ that gave the step s was taken at other weights than H.

    The smaller of two bounds: M ‖d‖ ‖s‖ for weights that are d apart, and κ ψ(κ‖d‖) √(dᵀH₀d · sᵀH₀s) for a
    self-concordant loss, ψ(t) = (eᵗ - 1) / t.

    Args:
        step: ‖s‖.
        curvature: sᵀ H₀ s, without the penalty.
        moved: ‖d‖, at most.
        spread: √(dᵀ H₀ d), at most.
        hessian_lipschitz: M of one row's loss.
        concordance: κ of one row's loss, with |D³f[a, b, v]| ≤ κ ‖v‖ √(D²f[a, a] D²f[b, b]).
    """
    by_lipschitz = hessian_lipschitz * moved * step
    reach = concordance * moved
    if reach > _REACH:
        return by_lipschitz
    ratio = math.expm1(reach) / reach if reach else 1.0
    return min(by_lipschitz, concordance * ratio * spread * math.sqrt(max(curvature, 0.0)))


_REACH = 30.0
"""Where the exponential is worth nothing beside the other bound."""


@dataclass(frozen=True)
class CurvatureMismatch:
    """A bound on ‖H_D - H_S‖ between the mean curvatures of the training set and of its surrogate.

    Attributes:
        total: The bound that is used.
        distance: Its part from the distance of the distributions, τ β.
        training: Its part from the training set being a sample, uniform over the weights it was used to find.
        surrogate: Its part from the surrogate being a sample.
        failure: Probability over both samples with which it does not hold; 0 where it is the trivial bound β.
    """

    total: float
    distance: float
    training: float
    surrogate: float
    failure: float


def curvature_mismatch(
    distance: float,
    smoothness: float,
    deviation: float,
    surrogate_deviation: float,
    failure: float,
) -> CurvatureMismatch:
    """Combine τ β with the two deviations; never more than β, since every curvature lies between 0 and β.

    Args:
        distance: τ, total variation between the distributions of training and surrogate examples, in [0, 1].
        smoothness: β of one row's loss, without the penalty.
        deviation: Of the training set, from `uniform_deviation`.
        surrogate_deviation: From `bernstein_deviation`.
        failure: Probability that one of the two is exceeded.
    """
    if not 0 <= distance <= 1:
        raise SettingError(f"surrogate_distance is a total variation distance and must lie in [0, 1], not {distance!r}")
    found = distance * smoothness + deviation + surrogate_deviation
    if found >= smoothness:
        return CurvatureMismatch(smoothness, distance * smoothness, deviation, surrogate_deviation, 0.0)
    return CurvatureMismatch(found, distance * smoothness, deviation, surrogate_deviation, failure)


def bernstein_deviation(rows: int, smoothness: float, size: int, failure: float) -> float:
    """How far a mean of independent curvatures at fixed weights is from its expectation, in spectral norm.

    Matrix Bernstein (Tropp 2012, theorem 1.6) for matrices between 0 and β of `size` columns: their variance is at
    most β²/4 and their deviation at most β, so that P(‖mean - expectation‖ ≥ t) ≤ 2 size exp(-(n t²/2)/(β²/4 + β t/3)).
    """
    log_term = math.log(2 * size / failure) / rows
    linear = log_term * smoothness / 3
    return linear + math.sqrt(linear**2 + log_term * smoothness**2 / 2)


def uniform_deviation(
    rows: int, smoothness: float, failure: float, *, weight_norm: float, feature_norm: float,
    slopes: tuple[float, float], outputs: int,
) -> float:  # fmt: skip
    """The same at weights that depend on the rows: uniform over all weights of norm up to `weight_norm`.

    Bounded differences plus Rademacher complexity by vector contraction (Maurer 2016, corollary 4):
    4 (a B + b) C √(outputs / n) + β √(ln(2 / failure) / (2 n)).

    Args:
        rows: n.
        smoothness: β.
        failure: Probability that it is exceeded.
        weight_norm: B, which must not depend on the data.
        feature_norm: C.
        slopes: (a, b): how fast the curvature of one row along a unit direction changes with its logits, and with the
            direction's image.
        outputs: Number of logits that one row's curvature depends on.
    """
    by_logits, by_direction = slopes
    complexity = 4 * (by_logits * weight_norm + by_direction) * feature_norm * math.sqrt(outputs / rows)
    return complexity + smoothness * math.sqrt(math.log(2 / failure) / (2 * rows))


def largest_weights(l2: float, loss_at_zero: float, lipschitz: float, residual: float) -> float:
    """A norm that no optimum exceeds whatever the data, plus how far a gradient norm of `residual` may lie from it.

    At an optimum l2 ‖w‖ is a mean of gradients, and (l2/2) ‖w‖² is at most the loss at zero weights.
    """
    return min(lipschitz / l2, math.sqrt(2 * loss_at_zero / l2)) + residual / l2


# The bounds as published, for comparison: none of them is what noise is calibrated to.


def sekhari_sensitivity(
    deleted: int, rows: int, *, strong_convexity: float, lipschitz: float, hessian_lipschitz: float
) -> float:
    """2 M m² L² / (λ³ n²): Sekhari et al. 2021 (NeurIPS), for one Newton step from an exact optimum."""
    return 2 * hessian_lipschitz * deleted**2 * lipschitz**2 / (strong_convexity**3 * rows**2)


def guo_sensitivity(rows: int, *, l2: float, gamma: float, lipschitz: float = 1.0) -> float:
    """4 γ C² / (λ² (n - 1)): Guo et al. 2020 (ICML), the gradient norm after removing one row, times 1/λ."""
    return 4 * gamma * lipschitz**2 / (l2**2 * (rows - 1)) / l2


def basaran_sensitivity(
    deleted: int, rows: int, surrogate_rows: int, distance: float, gradient: float, *, strong_convexity: float,
    smoothness: float, lipschitz: float, hessian_lipschitz: float,
) -> float:  # fmt: skip
    """Theorem 4.2 of Basaran et al. 2025 (arXiv 2506.06486) with L squared, and |n1 - n2| as its derivation has it.

    Raises:
        SettingError: n α ≤ m β for one of the sets, where the theorem says nothing.
    """
    first = rows * strong_convexity - deleted * smoothness
    second = surrogate_rows * strong_convexity - deleted * smoothness
    if min(first, second) <= 0:
        raise SettingError(
            f"n α - m β is {min(first, second):.3g}, which must be above 0; forget fewer examples, raise the L2 "
            "penalty or use a larger surrogate"
        )
    mismatch = abs(rows - surrogate_rows) * smoothness + 2 * surrogate_rows * smoothness * distance
    newton = sekhari_sensitivity(
        deleted, rows, strong_convexity=strong_convexity, lipschitz=lipschitz, hessian_lipschitz=hessian_lipschitz
    )
    return newton + gradient * deleted * mismatch / (first * second)
