"""How to forget: one file an algorithm."""

from expunge.methods.adapters import LoraSettings
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.emmn import EMMN
from expunge.methods.exact_discriminant import ExactDiscriminant
from expunge.methods.exact_naive_bayes import ExactNaiveBayes
from expunge.methods.exact_ridge import ExactRidge
from expunge.methods.fine_tune import FineTune, Stage
from expunge.methods.grad_diff import GradDiff
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.gradient_reversal import GradientReversal
from expunge.methods.idk_dpo import IdkDPO
from expunge.methods.just_in_time import JustInTime
from expunge.methods.lfssd import LFSSD
from expunge.methods.neg_grad_plus import NegGradPlus
from expunge.methods.newton_removal import NewtonRemoval
from expunge.methods.noisy_fine_tune import NoisyFineTune
from expunge.methods.npo import NPO
from expunge.methods.random_label import RandomLabel
from expunge.methods.retrain import Retrain
from expunge.methods.rmu import RMU
from expunge.methods.salun import SalUn
from expunge.methods.scrub import SCRUB
from expunge.methods.sim_npo import SimNPO
from expunge.methods.sisa import SISA
from expunge.methods.ssd import SSD
from expunge.methods.task_negation import TaskNegation
from expunge.methods.undial import UNDIAL
from expunge.methods.unsir import UNSIR, Noise

__all__ = [
    "EMMN",
    "LFSSD",
    "NPO",
    "RMU",
    "SCRUB",
    "SISA",
    "SSD",
    "UNDIAL",
    "UNSIR",
    "BadTeacher",
    "ExactDiscriminant",
    "ExactNaiveBayes",
    "ExactRidge",
    "FineTune",
    "Forgotten",
    "GradDiff",
    "GradientAscent",
    "GradientReversal",
    "IdkDPO",
    "JustInTime",
    "LoraSettings",
    "Maturity",
    "Method",
    "Need",
    "NegGradPlus",
    "NewtonRemoval",
    "Noise",
    "NoisyFineTune",
    "RandomLabel",
    "Retrain",
    "SalUn",
    "SimNPO",
    "Stage",
    "TaskNegation",
    "Tier",
]
