"""Evidence: what an unlearned model does beside what retrained models do."""

from expunge.audit.auditing import References, audit
from expunge.audit.choosing import FleetSettings
from expunge.audit.evidence import Evidence, Verdict
from expunge.audit.executors import TrainingJob
from expunge.audit.fairness import Fairness, fairness
from expunge.audit.fleet import Fleet
from expunge.audit.reconstruction import Reconstruction, reconstruct
from expunge.audit.relearning import Relearning
from expunge.audit.settings import AuditSettings, Level, Margins

__all__ = [
    "AuditSettings",
    "Evidence",
    "Fairness",
    "Fleet",
    "FleetSettings",
    "Level",
    "Margins",
    "Reconstruction",
    "References",
    "Relearning",
    "TrainingJob",
    "Verdict",
    "audit",
    "fairness",
    "reconstruct",
]
