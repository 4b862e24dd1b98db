"""The mathematics of a guarantee: mechanisms, sensitivity bounds, budget."""

from expunge.privacy.certificate import Certificate, tier_of
from expunge.privacy.constants import Constant, Origin
from expunge.privacy.tier import Tier

__all__ = [
    "Certificate",
    "Constant",
    "Origin",
    "Tier",
    "tier_of",
]
