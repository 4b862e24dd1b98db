"""Expunge removes chosen training data from a trained model and measures how far that worked."""

from expunge.audit import AuditSettings, Evidence, Level, Margins, References, Relearning, Verdict, audit
from expunge.errors import ExpungeError
from expunge.methods import (
    UNSIR,
    FineTune,
    GradientAscent,
    Maturity,
    Method,
    Need,
    NegGradPlus,
    Noise,
    RandomLabel,
    Retrain,
    Stage,
    Tier,
)
from expunge.problem import Problem, Recipe, Split, split
from expunge.tasks import Classification, Task
from expunge.training import Algorithm, Execution, Optimizer, Run, Schedule, Supervised, Term
from expunge.unlearning import Record, Unlearned, unlearn

__all__ = [
    "UNSIR",
    "Algorithm",
    "AuditSettings",
    "Classification",
    "Evidence",
    "Execution",
    "ExpungeError",
    "FineTune",
    "GradientAscent",
    "Level",
    "Margins",
    "Maturity",
    "Method",
    "Need",
    "NegGradPlus",
    "Noise",
    "Optimizer",
    "Problem",
    "RandomLabel",
    "Recipe",
    "Record",
    "References",
    "Relearning",
    "Retrain",
    "Run",
    "Schedule",
    "Split",
    "Stage",
    "Supervised",
    "Task",
    "Term",
    "Tier",
    "Unlearned",
    "Verdict",
    "audit",
    "split",
    "unlearn",
]
