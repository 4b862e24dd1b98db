"""Regression: batches, losses in nats, quality within a tolerance, heads."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tiny
from expunge import Problem, Regression, Retrain, split, unlearn
from expunge.errors import DataError, ModelError, NonFiniteDataError, SettingError, ShapeError
from expunge.networks import mlp
from expunge.training import Optimizer, Supervised

TASK = Regression(tolerance=0.5)
DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 3, generator=DRAW)
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5]) + 3
DATA = TensorDataset(INPUTS, TARGETS)


def shifted(by: float) -> nn.Linear:
    """The exact model, off by a constant."""
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        model.bias.fill_(3 + by)
    return model


def test_batches_from_every_form_are_equal() -> None:
    whole = TASK.stack(DATA.tensors)
    for form in ("tuples", "mappings"):
        rows = [(x, float(y)) for x, y in DATA] if form == "tuples" else [{"x": x, "y": y} for x, y in DATA]
        batch = TASK.collate(rows)
        assert torch.equal(batch["inputs"], whole["inputs"])
        assert torch.equal(batch["targets"], whole["targets"])
    assert whole["targets"].shape == (40, 1)
    two = Regression(1.0, outputs_per_example=2)
    assert two.stack((INPUTS, INPUTS[:, :2]))["targets"].shape == (40, 2)
    assert TASK.labels_of(DATA) is None


def test_losses_quality_signal_and_divergence() -> None:
    batch = TASK.stack(DATA.tensors)
    exact, near, far = shifted(0), shifted(0.4), shifted(0.6)
    assert torch.allclose(TASK.losses(near, batch), torch.full((40,), 0.08), atol=1e-5)
    assert TASK.quality(near, batch)["within tolerance"].tolist() == [1] * 40
    assert TASK.quality(far, batch)["within tolerance"].tolist() == [0] * 40
    assert bool((TASK.signal(exact, batch) > TASK.signal(near, batch)).all())
    one, other = TASK.outputs(exact, batch), TASK.outputs(far, batch)
    normal = [torch.distributions.Normal(mean.double(), 0.5) for mean in (one, other)]
    expected = torch.distributions.kl_divergence(*normal)[:, 0]
    assert torch.allclose(TASK.divergence(one, other), expected)
    assert TASK.outputs(nn.Sequential(exact, nn.Flatten(0)), batch).shape == (40, 1)


def test_groups_and_answers_part_the_range() -> None:
    task = Regression(0.5, edges=(0.0, 4.0))
    batch = task.stack((torch.ones(3, 1), torch.tensor([-1.0, 2.0, 9.0])))
    assert task.groups(batch) == ["up to 0", "0 to 4", "above 4"]
    answers = task.answers(torch.tensor([[5.0], [4.0], [0.0]]))
    assert {name: value.tolist() for name, value in answers.items()} == {
        "up to 0": [0, 0, 1],
        "0 to 4": [0, 1, 0],
        "above 4": [1, 0, 0],
    }
    assert TASK.groups(batch) == ["all"] * 3
    assert torch.stack(list(task.answers(torch.randn(50, 1)).values())).sum(0).tolist() == [1] * 50


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_refitted(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 1, bias=bias))
    body = model[0].weight.clone()
    TASK.refit_head(model, [TASK.stack(DATA[:25]), TASK.stack(DATA[25:])])
    assert torch.equal(model[0].weight, body)
    features = torch.cat([TASK.features(model, TASK.stack(DATA.tensors)).double(), torch.ones(40, 1)], 1)
    best = torch.linalg.lstsq(features.detach(), TARGETS.double()[:, None], driver="gelsd").solution
    fitted = TASK.outputs(model, TASK.stack(DATA.tensors)).double()
    assert torch.allclose(fitted, features @ best, atol=0.02)


@pytest.mark.parametrize(
    ("columns", "error", "words"),
    [
        ((torch.ones(2, 3), torch.tensor([1.0, float("nan")])), NonFiniteDataError, "a target holds NaN"),
        ((torch.full((2, 3), float("inf")), torch.ones(2)), NonFiniteDataError, "an input holds NaN"),
        ((torch.ones(2, 3), torch.ones(2, 4)), DataError, r"targets of shape \(2, 4\) do not give 2 inputs 1 numbers"),
        ((torch.ones(2, 3).long(), torch.ones(2)), DataError, "a model needs floats"),
    ],
)
def test_columns_that_cannot_be_used(columns: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TASK.stack(columns)


def test_examples_models_and_settings_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="lacks an input 0 or a numeric target 1"):
        TASK.collate([([1.0], 2.0), ([1.0], "two")])
    with pytest.raises(ShapeError, match="different shapes"):
        TASK.collate([([1.0], 2.0), ([1.0, 2.0], 3.0)])
    with pytest.raises(ModelError, match=r"outputs of shape \(40, 2\) for 40 inputs, where \(40, 1\) was expected"):
        TASK.outputs(mlp(3, 2), TASK.stack(DATA.tensors))
    with pytest.raises(ModelError, match="no Linear with 1 outputs was found"):
        TASK.head_of(mlp(3, 2))
    with pytest.raises(ModelError, match="the model has no Linear named 'absent'"):
        Regression(1.0, head="absent").head_of(mlp(3, 1))
    for value in (0, -1, float("nan")):
        with pytest.raises(SettingError, match=r"^tolerance must"):
            Regression(value)
    with pytest.raises(SettingError, match="edges must be in rising order"):
        Regression(1.0, edges=(2.0, 1.0))


def test_a_regression_is_unlearned() -> None:
    recipe = Supervised(lambda: nn.Linear(3, 1), TASK, 20, 16, Optimizer(0.05), execution=tiny.QUIET)
    parts = split(DATA, indices=range(5))
    problem = Problem(recipe(DATA, 0), TASK, parts.forget, parts.retain, recipe=recipe)
    result = unlearn(problem, Retrain(), seed=3, execution=tiny.QUIET)
    expected = recipe(parts.retain, 3)
    assert torch.equal(result.model.weight, expected.weight)
