"""Expunge removes chosen training data from a trained model and measures how far that worked."""

from expunge.errors import ExpungeError
from expunge.methods import (
    UNSIR,
    FineTune,
    GradientAscent,
    Maturity,
    Method,
    NegGradPlus,
    Need,
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
    "Classification",
    "Execution",
    "ExpungeError",
    "FineTune",
    "GradientAscent",
    "Maturity",
    "Method",
    "NegGradPlus",
    "Need",
    "Noise",
    "Optimizer",
    "Problem",
    "RandomLabel",
    "Recipe",
    "Record",
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
    "split",
    "unlearn",
]
