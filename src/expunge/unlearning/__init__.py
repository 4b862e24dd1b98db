"""`unlearn`: from a problem and a method to a model that has forgotten, and the record of how."""

from expunge.unlearning.forgetting import unlearn
from expunge.unlearning.record import RECORD_FILE, Choice, DataRecord, Record, StateRecord, TrialRecord, read_record
from expunge.unlearning.result import KEY_FILE, MODEL_FILE, Unlearned

__all__ = [
    "KEY_FILE",
    "MODEL_FILE",
    "RECORD_FILE",
    "Choice",
    "DataRecord",
    "Record",
    "StateRecord",
    "TrialRecord",
    "Unlearned",
    "read_record",
    "unlearn",
]
