"""A problem on scikit-learn's digits with an MLP, small enough to retrain in a second."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from expunge import AuditSettings, Classification, Execution, Problem, References, Relearning, Supervised, split
from expunge.networks import mlp

FORGOTTEN = 3
SETTINGS = AuditSettings(relearning=Relearning(forget_examples=40, retain_examples=360, steps=(0, 5, 10, 20)))
QUIET = Execution(progress=False)


@pytest.fixture(scope="session")
def problem() -> Problem:
    """Forget one digit."""
    digits = cast(Any, load_digits())
    inputs, labels = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = (TensorDataset(inputs[chosen], labels[chosen]) for chosen in (order[:1300], order[1300:]))
    task = Classification(10)
    recipe = Supervised(partial(mlp, 64, 10), task, epochs=12, batch_size=64, execution=QUIET)
    parts = split(train, classes=[FORGOTTEN])
    return Problem(recipe(train, 0), task, parts.forget, parts.retain, test, parts.classes, recipe)


@pytest.fixture(scope="session")
def references(problem: Problem) -> References:
    """Ten oracles: with five, a masked logit is inconclusive more often than not."""
    return References.prepare(problem, 10, seed=1, settings=SETTINGS, execution=QUIET)
