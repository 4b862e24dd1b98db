"""The mathematics of a guarantee: mechanisms, sensitivity bounds, budget."""

from expunge.privacy.budget import DeletionBudget
from expunge.privacy.certificate import Certificate, tier_of
from expunge.privacy.constants import Constant, Origin
from expunge.privacy.drawing import secret_gaussian
from expunge.privacy.iteration import iteration_shift, renyi_delta, renyi_ratio
from expunge.privacy.mechanisms import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_sigma,
    require_meaning,
    require_request,
)
from expunge.privacy.sensitivity import (
    CurvatureMismatch,
    DistanceBound,
    basaran_sensitivity,
    bernstein_deviation,
    curvature_drift,
    curvature_mismatch,
    guo_sensitivity,
    largest_weights,
    newton_remainder,
    sekhari_sensitivity,
    uniform_deviation,
)
from expunge.privacy.tier import Tier

__all__ = [
    "Certificate",
    "Constant",
    "CurvatureMismatch",
    "DeletionBudget",
    "DistanceBound",
    "Origin",
    "Tier",
    "basaran_sensitivity",
    "bernstein_deviation",
    "curvature_drift",
    "curvature_mismatch",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_sigma",
    "guo_sensitivity",
    "iteration_shift",
    "largest_weights",
    "newton_remainder",
    "renyi_delta",
    "renyi_ratio",
    "require_meaning",
    "require_request",
    "secret_gaussian",
    "sekhari_sensitivity",
    "tier_of",
    "uniform_deviation",
]
