"""How to forget: one file an algorithm."""

from expunge.methods.adapters import LoraSettings
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.emmn import EMMN
from expunge.methods.exact_discriminant import ExactDiscriminant
from expunge.methods.exact_naive_bayes import ExactNaiveBayes
from expunge.methods.exact_ridge import ExactRidge
from expunge.methods.extrapolated_tuning import ExtrapolatedTuning
from expunge.methods.fine_tune import FineTune, Stage
from expunge.methods.grad_diff import GradDiff
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.gradient_reversal import GradientReversal
from expunge.methods.idk_dpo import IdkDPO
from expunge.methods.just_in_time import JustInTime
from expunge.methods.latent_remap import LatentRemap
from expunge.methods.max_loss import MaxLoss
from expunge.methods.neg_grad_plus import NegGradPlus
from expunge.methods.newton_removal import NewtonRemoval
from expunge.methods.noisy_fine_tune import NoisyFineTune
from expunge.methods.noisy_label import NoisyLabel
from expunge.methods.npo import NPO
from expunge.methods.random_encoder import RandomEncoder
from expunge.methods.random_label import RandomLabel
from expunge.methods.retain_label import RetainLabel
from expunge.methods.retrain import Retrain
from expunge.methods.rmu import RMU
from expunge.methods.sim_npo import SimNPO
from expunge.methods.sisa import SISA
from expunge.methods.task_negation import TaskNegation
from expunge.methods.undial import UNDIAL
from expunge.methods.unsir import UNSIR, Noise

__all__ = [
    "EMMN",
    "NPO",
    "RMU",
    "SISA",
    "UNDIAL",
    "UNSIR",
    "ExactDiscriminant",
    "ExactNaiveBayes",
    "ExactRidge",
    "ExtrapolatedTuning",
    "FineTune",
    "Forgotten",
    "GradDiff",
    "GradientAscent",
    "GradientReversal",
    "IdkDPO",
    "JustInTime",
    "LatentRemap",
    "LoraSettings",
    "Maturity",
    "MaxLoss",
    "Method",
    "Need",
    "NegGradPlus",
    "NewtonRemoval",
    "Noise",
    "NoisyFineTune",
    "NoisyLabel",
    "RandomEncoder",
    "RandomLabel",
    "RetainLabel",
    "Retrain",
    "SimNPO",
    "Stage",
    "TaskNegation",
    "Tier",
]
