"""What a model is for: one file a modality."""

from expunge.tasks.base import Batch, Task
from expunge.tasks.classification import Classification
from expunge.tasks.regression import Regression

__all__ = ["Batch", "Classification", "Regression", "Task"]
