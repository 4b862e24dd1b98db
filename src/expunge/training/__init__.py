"""The one optimisation loop: device, precision, progress, checkpoints, resume."""

from expunge.training.checkpoint import CheckpointFolder, PhaseRecord
from expunge.training.evaluation import over_batches
from expunge.training.execution import Execution
from expunge.training.loop import Recording, StepRecorder
from expunge.training.objective import Algorithm, Objective, Optimizer, Schedule, Term
from expunge.training.progress import bar
from expunge.training.recipe import Supervised
from expunge.training.run import Run
from expunge.training.seeds import reproducible, seed_globals

__all__ = [
    "Algorithm",
    "CheckpointFolder",
    "Execution",
    "Objective",
    "Optimizer",
    "PhaseRecord",
    "Recording",
    "Run",
    "Schedule",
    "StepRecorder",
    "Supervised",
    "Term",
    "bar",
    "over_batches",
    "reproducible",
    "seed_globals",
]
