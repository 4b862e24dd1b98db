"""Two processes on one machine reach what one reaches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import _two_processes
import tiny
from expunge.storage import read_tensors


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the script wrote when accelerate launched it in two processes."""
    folder = tmp_path_factory.mktemp("two-processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `accelerate launch` runs too; by itself it starts several processes on a CPU only by way of MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += [str(Path(_two_processes.__file__)), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    tensors, _ = read_tensors(folder / "models.safetensors")
    return tensors, json.loads((folder / "reports.json").read_text())


def test_there_were_two_and_they_agree(launched: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    reports = launched[1]["reports"]
    assert len(reports) == 2
    assert reports[0] == reports[1], "the same model and the same key in each"


@pytest.mark.parametrize("name", [*_two_processes.METHODS, "unsir, resumed False", "unsir, resumed True"])
def test_the_result_is_that_of_one_process(
    name: str, launched: tuple[dict[str, Tensor], dict[str, Any]], alone: dict[str, Tensor]
) -> None:
    start = tiny.flat(_two_processes.the_problem().model)
    assert (alone[name] - start).abs().max() > 1e-3, "a model that stands still would show nothing"
    assert torch.allclose(launched[0][name], alone[name], atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("one-process")
    return {name: tiny.flat(model) for name, (model, _) in _two_processes.results(folder).items()}


def test_a_batch_too_small_to_part_is_refused(launched: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    assert "has a batch of 1, which cannot be parted among 2 processes; raise batch_size" in launched[1]["refusal"]
