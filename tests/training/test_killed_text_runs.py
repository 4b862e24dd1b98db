"""Runs on text that are killed go on to the bits they would have reached, from wherever they stood."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

import _killed_text_run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["_killed_text_run"])


class Child:
    """A run in a process of its own."""

    def __init__(self, case: str, folder: Path, prepared: Path, *, resume: bool) -> None:
        self.results, sender = SERVER.Pipe(duplex=False)
        arguments = {"connection": sender, "case": case, "folder": str(folder), "prepared": str(prepared)}
        self.process = SERVER.Process(target=_killed_text_run.send, kwargs=arguments | {"resume": resume})
        self.process.start()
        sender.close()

    def kill_when(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.is_alive(), f"the run ended with {self.process.exitcode}"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, "the run ended before it was killed"

    def result(self) -> str:
        assert self.results.poll(120)
        self.process.join()
        return self.results.recv()


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # A server of Python 3.11 does not take over the path, and goes without what it cannot import.
        paths = [str(Path(_killed_text_run.__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        forkserver.ensure_running()
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    _killed_text_run.prepare(folder)
    return folder


def uninterrupted(case: str, folder: Path, prepared: Path) -> str:
    return _killed_text_run.main(case, folder / "whole", prepared, seconds=0, resume=False)


def passes(folder: Path) -> int:
    path = folder / "passes"
    return path.stat().st_size if path.exists() else 0


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.parametrize("case", ["recipe", "npo", "npo, lora", _killed_text_run.LOGGED])
def test_a_run_that_is_killed_twice_while_it_trains_reaches_the_same_bits(
    case: str, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    checkpoint = folder / ("00-unlearn.safetensors" if case.startswith("npo") else "00-train.safetensors")
    for kill in range(2):
        before = modified(checkpoint)
        child = Child(case, folder, prepared, resume=kill > 0)
        child.kill_when(lambda before=before: modified(checkpoint) > before)
    assert Child(case, folder, prepared, resume=True).result() == uninterrupted(case, tmp_path, prepared)
    assert not list(folder.glob(".expunge-partial-*"))


def test_a_run_that_is_killed_while_it_asks_the_original_reaches_the_same_bits(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = Child("npo", folder, prepared, resume=False)
    child.kill_when(lambda: passes(folder) >= 4)  # two of one example a set, then those of the original
    assert not list(folder.glob("*.safetensors")), "the kill came too late"
    assert Child("npo", folder, prepared, resume=True).result() == uninterrupted("npo", tmp_path, prepared)


def test_a_reversal_that_is_killed_in_its_line_search_and_in_its_repair_reaches_the_same_bits(
    prepared: Path, tmp_path: Path
) -> None:
    folder, case = tmp_path / "run", "gradient-reversal"
    child = Child(case, folder, prepared, resume=False)
    child.kill_when(lambda: passes(folder) >= 10)  # four before the first step of the search
    assert not list(folder.glob("*.safetensors")), "the kill came too late"
    child = Child(case, folder, prepared, resume=True)
    child.kill_when(lambda: (folder / "01-repair.safetensors").exists())
    assert Child(case, folder, prepared, resume=True).result() == uninterrupted(case, tmp_path, prepared)
