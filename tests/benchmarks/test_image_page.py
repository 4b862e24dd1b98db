"""The page of the benchmark of image-to-image models says what its results say."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = ("i2i", "_i2i", "_cifar10", "_results")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(MODULES):
            del sys.modules[name]


@pytest.mark.data
def test_the_committed_page_is_that_of_the_committed_results() -> None:
    import i2i
    from _cifar10 import SIZES
    from _i2i_tables import PAGE, page
    from _i2i_worlds import worlds

    size = SIZES["quick"]
    there = {name: i2i.computed(world, size) for name, world in worlds().items() if i2i.complete(world, size)}

    assert there, "no world was computed"
    assert PAGE.read_text(encoding="utf-8") == page(there)
