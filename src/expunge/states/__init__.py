"""What training records so that a later deletion is exact, certified or cheap."""

from expunge.states.base import StateKind, digest_state
from expunge.states.recording import KINDS, STATE_FILE, load_state, record, save_state, state_bytes
from expunge.states.rows import RowLedger

__all__ = [
    "KINDS",
    "STATE_FILE",
    "RowLedger",
    "StateKind",
    "digest_state",
    "load_state",
    "record",
    "save_state",
    "state_bytes",
]
