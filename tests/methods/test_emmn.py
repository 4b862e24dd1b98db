"""EMMN learns from the model alone, and what that costs is stated."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge import EMMN, Problem, Run, unlearn
from expunge.errors import ForgetSetError, LabelError, SettingError, ShapeError
from expunge.storage import digest_model

SMALL = EMMN(noise_images=8, noise_repeats=2, batch_size=16)
THOROUGH = EMMN(noise_images=32, noise_repeats=40, learning_rate=0.02, batch_size=32)
SEEDS = range(6)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    """For each seed a model, and nothing else but the class to be forgotten."""
    shape = tiny.SHAPES["mlp"]
    data, recipe = shape.data(), tiny.recipe(shape)
    return [Problem(recipe(data, seed=seed), tiny.TASK, classes=(0,)) for seed in SEEDS]


def noise(
    problem: Problem, phase: str, classes: tuple[int, ...], weight: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits of the original on learned noise, and the noise's labels."""
    run = Run(problem.task, seed, tiny.QUIET)
    learned = SMALL._noise(phase, problem, run, (tiny.FEATURES,), classes, weight=weight)
    return tiny.logits(problem.model, learned), torch.tensor([int(label) for _, label in learned])


def test_the_model_is_sure_of_the_noise_of_kept_classes(problems: list[Problem]) -> None:
    right: list[float] = []
    for seed, problem in enumerate(problems):
        logits, labels = noise(problem, "minimise", (1, 2, 3), 1.0, seed)
        assert labels.bincount().tolist() == [0, 16, 16, 16], "eight of each class, twice"
        right.append(float((logits.argmax(1) == labels).double().mean()))
    assert tiny.interval(right)[0] > 0.9, right


def test_the_model_errs_on_the_noise_of_forget_classes(problems: list[Problem]) -> None:
    for seed, problem in enumerate(problems):
        logits, labels = noise(problem, "maximise", (0, 2), -1.0, seed)
        assert not bool((logits.argmax(1) == labels).any())
        start = torch.randn(len(labels), tiny.FEATURES, generator=torch.Generator().manual_seed(seed))
        random = nn.functional.cross_entropy(problem.model(start), labels)
        assert nn.functional.cross_entropy(logits, labels) > 2 * random


def test_a_class_is_forgotten_and_the_others_are_mostly_kept(problems: list[Problem]) -> None:
    unseen = tiny.vectors(60, seed=9)
    inputs, labels = unseen.tensors
    forget, kept = (TensorDataset(inputs[where], labels[where]) for where in (labels == 0, labels != 0))
    before: list[float] = []
    on_forget: list[float] = []
    on_kept: list[float] = []
    for seed, problem in enumerate(problems):
        model = unlearn(problem, THOROUGH, seed=seed, execution=tiny.QUIET).model
        on_forget.append(tiny.accuracy(model, forget))
        on_kept.append(tiny.accuracy(model, kept))
        before.append(tiny.accuracy(problem.model, kept))
    assert tiny.interval(on_forget)[1] < 0.25, on_forget  # 1.0 before
    assert tiny.interval(on_kept)[0] > 0.9, on_kept
    lost = [one - other for one, other in zip(before, on_kept, strict=True)]
    assert 0 < sum(lost) / len(lost) < 0.06, "some of what is to stay is lost, and no more than was measured"


def test_data_are_looked_at_for_their_shape_alone(trained: Callable[[str], Problem]) -> None:
    given = trained("small_cnn")
    blind = Problem(given.model, tiny.TASK, classes=(0,))
    informed = unlearn(given, SMALL, seed=2, execution=tiny.QUIET)
    shaped = dataclasses.replace(SMALL, input_shape=(3, tiny.SIDE, tiny.SIDE))
    alone = unlearn(blind, shaped, seed=2, execution=tiny.QUIET)
    assert digest_model(informed.model) == digest_model(alone.model)
    assert [phase.name for phase in alone.record.phases] == ["maximise", "minimise", "impair", "repair"]
    with pytest.raises(ShapeError, match=r"cannot be told without data.*EMMN\(input_shape="):
        unlearn(blind, SMALL, execution=tiny.QUIET)


@pytest.mark.parametrize("shape", ["small_cnn", "ResNet9"])
def test_statistics_of_batchnorm_stay_those_of_data(shape: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(shape)
    model = unlearn(problem, SMALL, execution=tiny.QUIET).model
    before = {name: value for name, value in problem.model.named_buffers() if "running" in name}
    assert before
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())


def test_noise_that_learns_nothing_is_reported(problems: list[Problem]) -> None:
    with pytest.warns(UserWarning, match=r"learned nothing while it was to maximise.*noise_penalty \(10000\)"):
        unlearn(problems[0], dataclasses.replace(SMALL, noise_penalty=1e4), execution=tiny.QUIET)


def test_senseless_requests_are_refused(problems: list[Problem]) -> None:
    model = problems[0].model
    with pytest.raises(ForgetSetError, match="every class is to be forgotten"):
        unlearn(Problem(model, tiny.TASK, classes=(0, 1, 2, 3)), SMALL, execution=tiny.QUIET)
    with pytest.raises(LabelError, match="class 4 is not in the model"):
        unlearn(Problem(model, tiny.TASK, classes=(4,)), SMALL, execution=tiny.QUIET)
    with pytest.raises(SettingError, match=r"input_shape must be the sides of one input.*not \(3, 0\)"):
        EMMN(input_shape=(3, 0))
