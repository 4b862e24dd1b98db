"""Whatever is wrong with a request has an error of its own, in words that say what to do."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

import tiny
from expunge import (
    UNSIR,
    FineTune,
    GradientAscent,
    NegGradPlus,
    NoiseAndDistil,
    Problem,
    RandomLabel,
    Retrain,
    Stage,
    split,
    unlearn,
)
from expunge import errors as e
from expunge.storage import digest_model

DATA = tiny.vectors(per_class=6)
LENGTH = len(DATA)
QUICK = FineTune((Stage(0.01, epochs=1),), batch_size=8)


def with_inputs(dataset: Any, position: int, value: float) -> TensorDataset:
    inputs, labels = tiny.tensors_of(dataset)
    inputs = inputs.clone()
    inputs[position, 3] = value
    return TensorDataset(inputs, labels)


def with_labels(dataset: Any, position: int, label: int) -> TensorDataset:
    inputs, labels = tiny.tensors_of(dataset)
    labels = labels.clone()
    labels[position] = label
    return TensorDataset(inputs, labels)


def broken(model: torch.nn.Module, value: float) -> torch.nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters())[0, 0] = value
    return changed


REQUESTS: dict[str, tuple[Callable[[Problem], Any], type[e.ExpungeError], str]] = {
    "empty forget set": (
        lambda problem: dataclasses.replace(problem, forget=Subset(DATA, [])),
        e.ForgetSetError,
        "the forget set is empty; check the indices, the column value or the class asked for",
    ),
    "nothing selected": (
        lambda problem: split(DATA, indices=[]),
        e.ForgetSetError,
        "no example was selected; check what identifies the data",
    ),
    "forget everything": (
        lambda problem: split(DATA, indices=range(LENGTH)),
        e.ForgetSetError,
        "the whole dataset: forgetting everything means discarding the model",
    ),
    "nothing retained": (
        lambda problem: dataclasses.replace(problem, retain=Subset(DATA, [])),
        e.ForgetSetError,
        "the retain set is empty: forgetting everything means discarding the model",
    ),
    "forget index out of range": (
        lambda problem: split(DATA, indices=[0, LENGTH]),
        e.ForgetSetError,
        f"the first is {LENGTH}; valid are 0 to {LENGTH - 1}.*check that they refer to this dataset",
    ),
    "forget and retain overlap": (
        lambda problem: dataclasses.replace(problem, forget=Subset(DATA, [0, 1]), retain=Subset(DATA, [1, 2])),
        e.ForgetSetError,
        "1 examples are in both .*use `expunge.split` to part them",
    ),
    "class not in the data": (
        lambda problem: split(DATA, classes=[17]),
        e.ForgetSetError,
        "do not occur among the classes .*check their spelling and type",
    ),
    "class not in the model": (
        lambda problem: unlearn(
            dataclasses.replace(problem, forget=None, classes=(17,)), UNSIR(), execution=tiny.QUIET
        ),
        e.LabelError,
        "class 17 is not in the model, which has the classes 0 to 3",
    ),
    "class not in the model, of a method that trains on retained data alone": (
        lambda problem: unlearn(
            dataclasses.replace(problem, forget=None, classes=(-1,)), NoiseAndDistil(), execution=tiny.QUIET
        ),
        e.LabelError,
        "class -1 is not in the model, which has the classes 0 to 3; name one of these",
    ),
    "NaN in the model": (
        lambda problem: dataclasses.replace(problem, model=broken(problem.model, math.nan)),
        e.NonFiniteModelError,
        r"0\.weight of the model holds NaN or infinity; load a sound checkpoint",
    ),
    "infinity in the model": (
        lambda problem: dataclasses.replace(problem, model=broken(problem.model, math.inf)),
        e.NonFiniteModelError,
        "load a sound checkpoint",
    ),
    "NaN in the first retained example": (
        lambda problem: run(problem, QUICK, retain=with_inputs(problem.retain, 0, math.nan)),
        e.NonFiniteDataError,
        "an input holds NaN or infinity; clean the dataset or drop the example",
    ),
    "infinity in a later retained example": (
        lambda problem: run(problem, QUICK, retain=with_inputs(problem.retain, 50, -math.inf)),
        e.NonFiniteDataError,
        "clean the dataset or drop the example",
    ),
    "NaN in the forget set": (
        lambda problem: run(problem, GradientAscent(), forget=with_inputs(problem.forget, 9, math.nan)),
        e.NonFiniteDataError,
        "clean the dataset or drop the example",
    ),
    "NaN in the holdout": (
        lambda problem: run(problem, QUICK, holdout=with_inputs(problem.retain, 0, math.nan)),
        e.NonFiniteDataError,
        "clean the dataset or drop the example",
    ),
    "retain missing": (
        lambda problem: run(problem, NegGradPlus(), retain=None),
        e.MissingNeedError,
        "NegGradPlus needs retained training data: pass `retain=` a dataset, as `expunge.split` makes it",
    ),
    "forget missing": (
        lambda problem: run(problem, RandomLabel(), forget=None),
        e.MissingNeedError,
        "RandomLabel needs the examples to forget: pass `forget=` a dataset",
    ),
    "recipe missing": (
        lambda problem: run(problem, Retrain(), recipe=None),
        e.MissingNeedError,
        r"Retrain needs a recipe to retrain with: pass `recipe=` a function \(dataset, seed\) -> model",
    ),
    "classes missing": (
        lambda problem: run(problem, UNSIR(), classes=()),
        e.MissingNeedError,
        r"UNSIR needs whole classes to forget: pass `classes=\(3,\)`, or split with `classes=\[3\]`",
    ),
    "label too large": (
        lambda problem: run(problem, QUICK, retain=with_labels(problem.retain, 40, 4)),
        e.LabelError,
        r"a label is 4, outside the 4 classes of the task \(0 to 3\); correct the label or `classes`",
    ),
    "label negative": (
        lambda problem: run(problem, QUICK, retain=with_labels(problem.retain, 0, -1)),
        e.LabelError,
        "a label is -1, outside the 4 classes",
    ),
    "inputs of another shape than the model's": (
        lambda problem: run(problem, QUICK, retain=TensorDataset(torch.ones(9, 5), torch.ones(9).long())),
        e.ShapeError,
        r"the model does not accept inputs of shape \(5,\).*check the size and the order of axes",
    ),
    "inputs of different shapes": (
        lambda problem: run(problem, QUICK, retain=[(torch.ones(12), 1), (torch.ones(7), 1)]),
        e.ShapeError,
        r"inputs of different shapes in one batch: \(7,\), \(12,\); resize or pad them in the dataset",
    ),
    "whole numbers as inputs": (
        lambda problem: run(problem, QUICK, retain=TensorDataset(torch.ones(9, 12).byte(), torch.ones(9).long())),
        e.DataError,
        "inputs are torch.uint8, a model needs floats; convert and scale them in the dataset",
    ),
    "more classes in the task than in the model": (
        lambda problem: run(problem, QUICK, task=tiny.Classification(7)),
        e.ModelError,
        r"outputs of shape \(1, 4\) for 1 inputs, where \(1, 7\) was expected; set `classes` to what the model was",
    ),
    "examples without labels": (
        lambda problem: run(problem, QUICK, retain=TensorDataset(torch.ones(9, 12))),
        e.DataError,
        "an example has 1 fields, too few to hold a label at 1",
    ),
    "a rate of zero": (
        lambda problem: run(problem, FineTune((Stage(0.0),))),
        e.SettingError,
        "learning_rate must be above 0, not 0.0",
    ),
    "a phase of no epochs": (
        lambda problem: run(problem, GradientAscent(epochs=0)),
        e.SettingError,
        "epochs must be above 0, not 0",
    ),
    "divergence": (
        lambda problem: run(problem, GradientAscent(1e30, epochs=40)),
        e.DivergedError,
        r"became .* at step \d+; lower the learning rate, or set clip_norm",
    ),
    "an output folder below a file": (
        lambda problem: unlearn(problem, QUICK, execution=tiny.QUIET, checkpoint_dir=Path(__file__) / "run"),
        e.OutputError,
        "cannot write .*; choose another folder",
    ),
}


def run(problem: Problem, method: Any, **changes: Any) -> Any:
    return unlearn(dataclasses.replace(problem, **changes), method, execution=tiny.QUIET)


@pytest.mark.parametrize("case", REQUESTS)
def test_what_is_wrong_is_said_with_its_remedy(case: str, mlp_problem: Problem) -> None:
    attempt, error, words = REQUESTS[case]
    before = digest_model(mlp_problem.model)
    with pytest.raises(error, match=words) as failure:
        attempt(mlp_problem)
    assert type(failure.value) is error
    assert digest_model(mlp_problem.model) == before


def test_every_error_is_ours_and_documented() -> None:
    kinds = [kind for kind in vars(e).values() if isinstance(kind, type)]
    assert all(issubclass(kind, e.ExpungeError | e.ExpungeWarning) for kind in kinds)
    assert all(kind.__doc__ for kind in kinds)
    assert not any(issubclass(kind, ValueError | RuntimeError | KeyError) for kind in kinds)


@pytest.mark.parametrize("position", [0, 50])
def test_bad_data_leave_no_half_written_file(position: int, mlp_problem: Problem, tmp_path: Path) -> None:
    problem = dataclasses.replace(mlp_problem, retain=with_inputs(mlp_problem.retain, position, math.nan))
    with pytest.raises(e.NonFiniteDataError):
        unlearn(problem, QUICK, execution=tiny.QUIET, checkpoint_dir=tmp_path)
    assert not list(tmp_path.glob(".expunge-partial-*"))
    assert not list(tmp_path.glob("*.safetensors"))
