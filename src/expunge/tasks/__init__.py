"""What a model is for: one file a modality."""

from expunge.tasks._inputs import asked_once
from expunge.tasks.base import Batch, Task
from expunge.tasks.causal_lm import CausalLM, Tokenized
from expunge.tasks.classification import Classification
from expunge.tasks.image_to_image import ImageToImage
from expunge.tasks.predictions import Predictions
from expunge.tasks.regression import Regression

__all__ = [
    "Batch",
    "CausalLM",
    "Classification",
    "ImageToImage",
    "Predictions",
    "Regression",
    "Task",
    "Tokenized",
    "asked_once",
]
