"""Runs on text that are killed go on to the bits they would have reached, from wherever they stood."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import _killed_text_run
from _child import SERVER, Child, modified, served

SERVER.set_forkserver_preload(["_killed_text_run"])


def started(case: str, folder: Path, prepared: Path, *, resume: bool) -> Child:
    return Child(_killed_text_run.send, case=case, folder=str(folder), prepared=str(prepared), resume=resume)


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with served():
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


@pytest.mark.parametrize("case", ["recipe", "npo", "npo, lora", _killed_text_run.LOGGED])
def test_a_run_that_is_killed_twice_while_it_trains_reaches_the_same_bits(
    case: str, prepared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    checkpoint = folder / ("00-unlearn.safetensors" if case.startswith("npo") else "00-train.safetensors")
    for kill in range(2):
        before = modified(checkpoint)
        child = started(case, folder, prepared, resume=kill > 0)
        child.kill_when(lambda before=before: modified(checkpoint) > before)
    assert started(case, folder, prepared, resume=True).result() == uninterrupted(case, tmp_path, prepared)
    assert not list(folder.glob(".expunge-partial-*"))


def test_a_run_that_is_killed_while_it_asks_the_original_reaches_the_same_bits(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = started("npo", folder, prepared, resume=False)
    child.kill_when(lambda: passes(folder) >= 4)  # two of one example a set, then those of the original
    assert not list(folder.glob("*.safetensors")), "the kill came too late"
    assert started("npo", folder, prepared, resume=True).result() == uninterrupted("npo", tmp_path, prepared)


def test_a_reversal_that_is_killed_in_its_line_search_and_in_its_repair_reaches_the_same_bits(
    prepared: Path, tmp_path: Path
) -> None:
    folder, case = tmp_path / "run", "gradient-reversal"
    child = started(case, folder, prepared, resume=False)
    child.kill_when(lambda: passes(folder) >= 10)  # four before the first step of the search
    assert not list(folder.glob("*.safetensors")), "the kill came too late"
    child = started(case, folder, prepared, resume=True)
    child.kill_when(lambda: (folder / "01-repair.safetensors").exists())
    assert started(case, folder, prepared, resume=True).result() == uninterrupted(case, tmp_path, prepared)
