"""What training records so that a later deletion is exact, certified or cheap."""

from expunge.states.base import StateKind, digest_state
from expunge.states.closed_form import ClosedForm
from expunge.states.curvature import CurvatureState, HeadSettings
from expunge.states.gradient_log import GradientLog
from expunge.states.gradient_recorder import GradientRecorder, log_training, token_weights
from expunge.states.gradient_settings import LogSettings
from expunge.states.head import HeadLoss, HeadRows, fit_head, head_rows
from expunge.states.moments import ClassMoments
from expunge.states.normal_classes import DiscriminantStatistics, NaiveBayesStatistics
from expunge.states.optimum import HeadOptimum
from expunge.states.recording import KINDS, STATE_FILE, load_state, record, save_state, state_bytes
from expunge.states.ridge import RidgeStatistics
from expunge.states.rows import RowLedger
from expunge.states.shards import Sharded, ShardState
from expunge.states.statistics import SufficientStatistics
from expunge.states.updates import UpdateLog, log_updates

__all__ = [
    "KINDS",
    "STATE_FILE",
    "ClassMoments",
    "ClosedForm",
    "CurvatureState",
    "DiscriminantStatistics",
    "GradientLog",
    "GradientRecorder",
    "HeadLoss",
    "HeadOptimum",
    "HeadRows",
    "HeadSettings",
    "LogSettings",
    "NaiveBayesStatistics",
    "RidgeStatistics",
    "RowLedger",
    "ShardState",
    "Sharded",
    "StateKind",
    "SufficientStatistics",
    "UpdateLog",
    "digest_state",
    "fit_head",
    "head_rows",
    "load_state",
    "log_training",
    "log_updates",
    "record",
    "save_state",
    "state_bytes",
    "token_weights",
]
