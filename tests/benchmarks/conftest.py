"""Benchmarks are scripts beside each other: their folder is on the path while one of their tests runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    theirs = {file.stem for file in BENCHMARKS.glob("*.py")}
    before = set(sys.modules)
    yield
    for name in (set(sys.modules) - before) & theirs:  # they keep models and paths of this test
        del sys.modules[name]
