"""What a model is for: one file a modality."""

from expunge.tasks.base import Batch, Task
from expunge.tasks.classification import Classification

__all__ = ["Batch", "Classification", "Task"]
