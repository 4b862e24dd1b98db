"""How to forget: one file an algorithm."""

from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.fine_tune import FineTune, Stage
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.neg_grad_plus import NegGradPlus
from expunge.methods.random_label import RandomLabel
from expunge.methods.retrain import Retrain
from expunge.methods.unsir import UNSIR, Noise

__all__ = [
    "UNSIR",
    "FineTune",
    "Forgotten",
    "GradientAscent",
    "Maturity",
    "Method",
    "Need",
    "NegGradPlus",
    "Noise",
    "RandomLabel",
    "Retrain",
    "Stage",
    "Tier",
]
