"""What `digits.yaml` names: the data, the trained model, and how such a model is trained."""

from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from expunge import Classification, Supervised
from expunge.networks import mlp

recipe = Supervised(partial(mlp, 64, 10), Classification(10), epochs=20)


def training_data() -> TensorDataset:
    return _digits(slice(0, 1400))


def holdout_data() -> TensorDataset:
    return _digits(slice(1400, None))


def trained_model() -> nn.Module:
    """The original. A real job names a file of weights instead; here training takes a second."""
    return recipe(training_data(), seed=0)


def _digits(part: slice) -> TensorDataset:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))[part]
    return TensorDataset(torch.tensor(digits.data).float()[order] / 16, torch.tensor(digits.target)[order])
