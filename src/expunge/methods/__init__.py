"""How to forget: one file an algorithm."""

from expunge.methods.adapters import LoraSettings
from expunge.methods.amnesiac import Amnesiac
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.boundary_expand import BoundaryExpand
from expunge.methods.boundary_shrink import BoundaryShrink
from expunge.methods.cfk import CFK
from expunge.methods.ct import CT
from expunge.methods.emmn import EMMN
from expunge.methods.euk import EUK
from expunge.methods.exact_discriminant import ExactDiscriminant
from expunge.methods.exact_naive_bayes import ExactNaiveBayes
from expunge.methods.exact_ridge import ExactRidge
from expunge.methods.extrapolate import Extrapolate, calibrated
from expunge.methods.fine_tune import FineTune, Stage
from expunge.methods.fisher_forgetting import FisherForgetting
from expunge.methods.grad_diff import GradDiff
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.gradient_reversal import GradientReversal
from expunge.methods.idk_dpo import IdkDPO
from expunge.methods.just_in_time import JustInTime
from expunge.methods.l1_sparse import L1Sparse
from expunge.methods.latent_remap import LatentRemap
from expunge.methods.lfssd import LFSSD
from expunge.methods.max_loss import MaxLoss
from expunge.methods.msg import MSG
from expunge.methods.neg_grad_plus import NegGradPlus
from expunge.methods.newton_removal import NewtonRemoval
from expunge.methods.noise_and_distil import NoiseAndDistil
from expunge.methods.noisy_fine_tune import NoisyFineTune
from expunge.methods.noisy_label import NoisyLabel
from expunge.methods.npo import NPO
from expunge.methods.random_encoder import RandomEncoder
from expunge.methods.random_label import RandomLabel
from expunge.methods.retain_label import RetainLabel
from expunge.methods.retrain import Retrain
from expunge.methods.rmu import RMU
from expunge.methods.salun import SalUn
from expunge.methods.scrub import SCRUB
from expunge.methods.selective_reset import SelectiveReset
from expunge.methods.sim_npo import SimNPO
from expunge.methods.sisa import SISA
from expunge.methods.ssd import SSD
from expunge.methods.task_negation import TaskNegation
from expunge.methods.undial import UNDIAL
from expunge.methods.unsir import UNSIR, Noise

__all__ = [
    "CFK",
    "CT",
    "EMMN",
    "EUK",
    "LFSSD",
    "MSG",
    "NPO",
    "RMU",
    "SCRUB",
    "SISA",
    "SSD",
    "UNDIAL",
    "UNSIR",
    "Amnesiac",
    "BadTeacher",
    "BoundaryExpand",
    "BoundaryShrink",
    "ExactDiscriminant",
    "ExactNaiveBayes",
    "ExactRidge",
    "Extrapolate",
    "FineTune",
    "FisherForgetting",
    "Forgotten",
    "GradDiff",
    "GradientAscent",
    "GradientReversal",
    "IdkDPO",
    "JustInTime",
    "L1Sparse",
    "LatentRemap",
    "LoraSettings",
    "Maturity",
    "MaxLoss",
    "Method",
    "Need",
    "NegGradPlus",
    "NewtonRemoval",
    "Noise",
    "NoiseAndDistil",
    "NoisyFineTune",
    "NoisyLabel",
    "RandomEncoder",
    "RandomLabel",
    "RetainLabel",
    "Retrain",
    "SalUn",
    "SelectiveReset",
    "SimNPO",
    "Stage",
    "TaskNegation",
    "Tier",
    "calibrated",
]
