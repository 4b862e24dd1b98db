"""Two processes train a language model as one does: with the model in each (DDP), and with it in parts (FSDP2)."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import _two_text_processes
import tiny
from expunge.storage import read_tensors

NAMES = [*_two_text_processes.CASES, _two_text_processes.RESUMED]
WAYS = {"ddp": "MULTI_CPU", "sharded": "FSDP"}
TOLERANCE = 1e-5
"""Absolute, of losses: sums over two halves of a batch round otherwise than over the whole."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    _two_text_processes.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def alone(prepared: Path) -> _two_text_processes.Found:
    return _two_text_processes.results(prepared, prepared / "alone" / "checkpoints")


@pytest.fixture(scope="module")
def launched(prepared: Path) -> Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]:
    """What the processes found, by the way in which they were spread."""

    @cache
    def launch(way: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        run(prepared, way, 2, ACCELERATE_USE_CPU="true")
        return found(prepared, way)

    return launch


def run(folder: Path, way: str, processes: int, **environment: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `accelerate launch` runs too; by itself it starts several processes on a CPU only by way of MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-port", str(port), str(Path(_two_text_processes.__file__)), str(folder), way]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]


def found(folder: Path, way: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, _ = read_tensors(folder / way / "models.safetensors")
    return tensors, json.loads((folder / way / "report.json").read_text())


@pytest.mark.parametrize("way", WAYS)
def test_there_were_two_of_the_kind_and_they_agree(way: str, launched: Any) -> None:
    report = launched(way)[1]
    assert (report["processes"], report["kind"]) == (2, WAYS[way])
    assert report["sums"][0] == report["sums"][1], "the same weights in each"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_losses_are_those_of_one_process(
    name: str, way: str, launched: Any, alone: _two_text_processes.Found, prepared: Path
) -> None:
    models, report = launched(way)
    start = tiny.flat(_two_text_processes.the_problem(prepared).model)
    flat, losses = alone[name]
    assert (flat - start).abs().max() > 1e-3, "a model that stands still would show nothing"
    assert report["losses"][name] == pytest.approx(losses, rel=0, abs=TOLERANCE)
    difference = (models[name] - flat).abs()
    assert difference.quantile(0.98) < 1e-6
    # AdamW makes steps of the learning rate, 1e-3, of gradients that are nothing but rounding, as those of key biases.
    assert difference.max() < 2e-4


def test_a_log_is_refused(launched: Any) -> None:
    assert "is recorded: use one process" in launched("ddp")[1]["refused"]["a log"]


def test_parting_on_a_cpu_is_refused_and_not_left_out_silently(launched: Any) -> None:
    refusal = launched("ddp")[1]["refused"]["parting on a CPU"]
    assert "launched with FSDP and runs MULTI_CPU" in refusal
    assert "launch without --use_fsdp, or on GPUs" in refusal


def test_processes_that_hold_different_models_are_refused(launched: Any) -> None:
    assert "the processes hold models with different weights" in launched("ddp")[1]["refused"]["two models"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate parts models on GPUs alone (FSDP2)")
def test_parts_on_gpus_as_accelerate_launches_them(prepared: Path) -> None:
    together = _two_text_processes.results(prepared, prepared / "one-gpu" / "checkpoints")
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    run(prepared, "launched", torch.cuda.device_count(), **settings)
    models, report = found(prepared, "launched")
    assert report["kind"] == "FSDP"
    for name, (flat, losses) in together.items():
        assert (models[name] - flat).abs().quantile(0.98) < 1e-5, name
        assert report["losses"][name] == pytest.approx(losses, rel=0, abs=1e-4), name
