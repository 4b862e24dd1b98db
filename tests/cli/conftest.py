import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from expunge.storage import write_tensors
from job_folder import NETWORK, QUICK_UNSIR, JobFolder, trained_mlp


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobFolder]:
    """A job that forgets class 0 of a tiny data set of feature vectors, without an audit."""
    monkeypatch.setenv("COLUMNS", "160")
    paths = list(sys.path)
    folder = JobFolder(tmp_path)
    folder.save_npz("train.npz", tiny.vectors())
    folder.save_npz("holdout.npz", tiny.vectors(10, seed=1))
    write_tensors(tmp_path / "original.safetensors", trained_mlp().state_dict())
    folder.job = {
        "model": NETWORK | {"weights": "original.safetensors"},
        "data": {"train": {"npz": "train.npz"}, "holdout": {"npz": "holdout.npz"}},
        "task": {"classes": tiny.CLASSES},
        "forget": {"classes": [0]},
        "method": dict(QUICK_UNSIR),
        "output": "out",
    }
    yield folder
    sys.path[:] = paths


@pytest.fixture
def finished(jobs: JobFolder) -> JobFolder:
    """A folder whose job has run, without an audit but with a recipe for one."""
    jobs.job["recipe"] = {"epochs": 2, "batch_size": 32}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    return jobs


@pytest.fixture
def table() -> Callable[[], dict[str, Any]]:
    """Columns of a table of people: three features, a diagnosis in words, and whose row it is."""

    def make() -> dict[str, Any]:
        inputs, labels = tiny.vectors(30).tensors
        people = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3)) % 12
        return {
            "patient_id": [f"00{int(person)}" for person in people],
            **{f"f{number}": inputs[:, number].tolist() for number in range(3)},
            "diagnosis": [("well", "ill", "frail", "lost")[int(label)] for label in labels],
        }

    return make
