"""Evidence: what an unlearned model does beside what retrained models do."""

from expunge.audit.auditing import References, audit
from expunge.audit.evidence import Evidence, Verdict
from expunge.audit.relearning import Relearning
from expunge.audit.settings import AuditSettings, Level, Margins

__all__ = ["AuditSettings", "Evidence", "Level", "Margins", "References", "Relearning", "Verdict", "audit"]
