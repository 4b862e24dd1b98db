"""What training records so that a later deletion is exact, certified or cheap."""

from expunge.states.base import StateKind, digest_state
from expunge.states.closed_form import ClosedForm
from expunge.states.normal_classes import DiscriminantStatistics, NaiveBayesStatistics
from expunge.states.recording import KINDS, STATE_FILE, load_state, record, save_state, state_bytes
from expunge.states.ridge import RidgeStatistics
from expunge.states.rows import RowLedger
from expunge.states.statistics import SufficientStatistics

__all__ = [
    "KINDS",
    "STATE_FILE",
    "ClosedForm",
    "DiscriminantStatistics",
    "NaiveBayesStatistics",
    "RidgeStatistics",
    "RowLedger",
    "StateKind",
    "SufficientStatistics",
    "digest_state",
    "load_state",
    "record",
    "save_state",
    "state_bytes",
]
