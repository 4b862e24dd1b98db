"""What a saved run says of its data, and where the key of that lies: from Python and from a job."""

import dataclasses
import stat
from pathlib import Path

import pytest
import torch

import tiny
from expunge.data import subset
from expunge.errors import SavedModelError
from expunge.methods import NegGradPlus
from expunge.problem import Problem, split
from expunge.tasks import Classification
from expunge.unlearning import Unlearned, unlearn
from job_folder import trained_mlp


@pytest.fixture
def result() -> Unlearned:
    parts = split(tiny.vectors(), classes=[0])
    problem = Problem(trained_mlp(), Classification(tiny.CLASSES), parts.forget, parts.retain, tiny.vectors(10, seed=1))
    return unlearn(problem, NegGradPlus(epochs=1), execution=tiny.QUIET)


@pytest.mark.parametrize("name", ["forget", "retain", "holdout"])
def test_loading_refuses_data_other_than_the_recorded(result: Unlearned, tmp_path: Path, name: str) -> None:
    result.save(tmp_path)
    whole = getattr(result.problem, name)
    assert whole is not None
    fewer = dataclasses.replace(result.problem, **{name: subset(whole, torch.arange(1, len(whole)))})
    with pytest.raises(SavedModelError, match=f"the {name} set is not what .*record.json speaks of"):
        Unlearned.load(tmp_path, fewer)


def test_loading_does_without_data_that_were_deleted(result: Unlearned, tmp_path: Path) -> None:
    result.save(tmp_path)
    without = dataclasses.replace(result.problem, forget=None, classes=(0,))
    assert Unlearned.load(tmp_path, without).record == result.record


def test_the_key_may_lie_elsewhere(result: Unlearned, tmp_path: Path) -> None:
    folder, key = tmp_path / "run", tmp_path / "keys" / "run.key"
    result.save(folder, key_path=key)
    assert {path.name for path in folder.iterdir()} == {"record.json", "model.safetensors"}
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert Unlearned.load(folder, result.problem, key_path=str(key)).key == result.key
    with pytest.raises(SavedModelError, match="say where it lies"):
        Unlearned.load(folder, result.problem)
