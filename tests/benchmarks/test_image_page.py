"""The page of the benchmark of image-to-image models says what its results say."""

from pathlib import Path
from statistics import mean
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


@pytest.mark.data
def test_the_counts_in_words_are_those_of_the_committed_results() -> None:
    import i2i
    from _cifar10 import SIZES

    words = (BENCHMARKS.parent / "docs" / "image-to-image.md").read_text(encoding="utf-8")
    found = {name: i2i.results_of(world, SIZES["quick"]).cells for name, world in i2i.worlds().items()}
    tasks = {name: list(world.corruptions) for name, world in i2i.worlds().items()}

    def counted(row: str, figure: str) -> list[int]:
        return [sum(_near(found[name], row, f"{figure}, {task}") for task in tasks[name]) for name in found]

    def listed(row: str, *figures: str) -> str:
        return "; ".join(", ".join(map(str, counted(row, figure))) for figure in figures)

    def total(row: str) -> int:
        return sum(sum(counted(row, f"{on} {what}")) for on in ("forget", "retain") for what in ("error", "FID"))

    oracle, original = "oracle, retain", "the original, which nothing was done to"
    for line in (
        f"| `oracle`: forget error | **missed** but for faces: {listed(oracle, 'forget error')} |",
        f"| `oracle`: forget FID | **missed**: {listed(oracle, 'forget FID')} |",
        f"| `oracle`: retain error; retain FID | **missed**: {listed(oracle, 'retain error', 'retain FID')} |",
        f"| `Extrapolate`: forget error; forget FID | {listed('Extrapolate', 'forget error', 'forget FID')} |",
        f"| `Extrapolate`: retain error; retain FID | {listed('Extrapolate', 'retain error', 'retain FID')} |",
        f"| {original}: forget error; forget FID | {listed('original', 'forget error', 'forget FID')} |",
        f"| the original: retain error; retain FID | {listed('original', 'retain error', 'retain FID')} |",
        f"`Extrapolate` meets {total('Extrapolate')}, the control {total('control: fine-tune')}, `MaxLoss` "
        f"{total('baseline: MaxLoss')}, `oracle` {total(oracle)},\n  the original {total('original')}.",
    ):
        assert line in words


def _near(cells: dict[str, Any], row: str, figure: str) -> bool:
    """Whether the mean of three models is near the oracles' or, of what is forgotten, among theirs."""
    oracles = [cells[f"oracle {number}"][figure] for number in range(3)]
    own = mean(cells[f"{seed}: {row}"][figure] for seed in range(3))
    forgotten = figure.startswith("forget")
    near = abs(own / mean(oracles) - 1) <= (0.1 if forgotten else 0.05)
    return near or (forgotten and min(oracles) <= own <= max(oracles))
