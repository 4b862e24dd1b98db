"""Evidence: what an unlearned model does beside what retrained models do."""

from expunge.audit.auditing import AuditSettings, References, audit
from expunge.audit.comparison import Margins
from expunge.audit.evidence import Evidence, Verdict
from expunge.audit.relearning import Relearning

__all__ = ["AuditSettings", "Evidence", "Margins", "References", "Relearning", "Verdict", "audit"]
