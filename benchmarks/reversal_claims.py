"""The five claims of gradient reversal's paper, against models retrained without the forget set.

A GPT-2 that knows 60 contracts of PISTOL is taught 13 more with a gradient log, and is to forget one of these; two
others are held out. Each way is calibrated to the same mean loss of the forget set. D is the mean distance in nats of
an example's loss from that of the mean oracle. Run with `make bench BENCH=reversal_claims` and EXPUNGE_DATA_DIR set.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure

from _results import Results, interval, size_from_arguments
from _reversal import SHAPES, Shape, World, log_folder, pistol, pistol_world
from _reversal_influence import LIKENESS, SCORES, duplicates_cell, influence_cell
from _reversal_rows import ways

PLAN = {"quick": (("0.2 M", "0.8 M"), 3, 3), "full": (("0.4 M", "1.3 M", "6.5 M"), 10, 5)}
"""Shapes, seeds and oracles a seed."""

COLUMNS = ("forget", "retain", "holdout", "D forget", "largest", "D retain", "D holdout", "seconds", "c")
PAIRS = {
    "1: first epoch, not all": ("first, all layers", "all, all layers"),
    "1: first epoch, not the last": ("first, all layers", "last, all layers"),
    "1: uncalibrated, first epoch, not all": ("first, all layers, c = 1", "all, all layers, c = 1"),
    "2: embedding, not all layers (first epoch)": ("first, embedding", "first, all layers"),
    "2: embedding, not all layers (all epochs)": ("all, embedding", "all, all layers"),
    "3: last two blocks, not untouched (first epoch)": ("first, last two blocks", "untouched"),
    "3: last two blocks, not the first two (first epoch)": ("first, last two blocks", "first, first two blocks"),
    "4: calibrated, not c = 1 (first epoch)": ("first, all layers", "first, all layers, c = 1"),
    "4: calibrated, not c = 1 (all epochs)": ("all, all layers", "all, all layers, c = 1"),
    "5: fuzzy, not plain": ("fuzzy: MinHash", "all, all layers"),
    "5: iterative, not plain": ("iterative: 3 rounds", "all, all layers"),
    "5: iterative, not fuzzy": ("iterative: 3 rounds", "fuzzy: MinHash"),
    "specific: forget set's gradients, not retained ones'": ("first, all layers", "control: first, of retained"),
    "log, not a fresh gradient / v": ("all, all layers", "no log: gradient / v"),
    "reversal, not GradDiff": ("all, all layers", "GradDiff, tuned rate"),
    "reversal, not NPO": ("all, all layers", "NPO, tuned rate"),
    "preset paper, not untouched": ("preset paper", "untouched"),
}


def main() -> None:
    """Fill the cells, print the tables, draw."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    pistol()
    shapes, seeds, oracles = PLAN[size.name]
    results = Results("reversal_claims", size, {"shapes": shapes, "seeds": seeds, "oracles": oracles, "threads": 1})
    for seed, name in product(range(seeds), shapes):
        with Lazy.world(SHAPES[name], seed, oracles) as lazy:
            fill(results, lazy, f"{name} · seed {seed}")
    report(results, shapes, range(seeds))


class Lazy:
    """A world that is made when a cell needs it."""

    def __init__(self, shape: Shape, seed: int, oracles: int, folder: Any) -> None:
        self.shape, self.seed, self.oracles, self.folder = shape, seed, oracles, folder

    @classmethod
    @contextmanager
    def world(cls, shape: Shape, seed: int, oracles: int) -> Iterator["Lazy"]:
        """With a log that is gone afterwards."""
        with log_folder() as folder:
            yield cls(shape, seed, oracles, folder)

    @cached_property
    def it(self) -> World:
        """The world."""
        return pistol_world(self.shape, self.seed, 0, self.oracles, self.folder)


def fill(results: Results, lazy: Lazy, prefix: str) -> None:
    """Every cell of one world."""
    results.cell(f"{prefix} · oracles", lambda: lazy.it.floor() | {"target": lazy.it.target})
    for name, way in ways(lazy.shape.blocks).items():
        results.cell(f"{prefix} · {name}", lambda way=way: way(lazy.it))
    results.cell(f"{prefix} · near-duplicates", lambda: duplicates_cell(lazy.it))
    results.cell(f"{prefix} · influence", lambda: influence_cell(lazy.it))


def values(results: Results, shape: str, seeds: Sequence[int], row: str, column: str) -> list[float]:
    """A figure over the seeds."""
    found = [results.cells.get(f"{shape} · seed {seed} · {row}", {}).get(column) for seed in seeds]
    return [each for each in found if each is not None]


def report(results: Results, shapes: Sequence[str], seeds: Sequence[int]) -> None:
    """Print the tables and draw the distances."""
    for shape in shapes:
        print(f"\n{shape} parameters\n\n| way | {' | '.join(COLUMNS)} |")
        print("| --- " * (len(COLUMNS) + 1) + "|")
        for row in ["oracles", *ways(SHAPES[shape].blocks)]:
            print(f"| {row} | {' | '.join(shown(values(results, shape, seeds, row, each)) for each in COLUMNS)} |")
    print("\n| claim | difference of D, one minus the other | worlds where smaller |\n| --- | --- | --- |")
    for claim, (one, other) in PAIRS.items():
        pairs = [
            [values(results, shape, [seed], row, "D forget") for row in (one, other)]
            for shape, seed in product(shapes, seeds)
        ]
        found = [first[0] - second[0] for first, second in pairs if first and second]
        print(f"| {claim} | {shown(found)} | {sum(each < 0 for each in found)} of {len(found)} |")
    report_scores(results, shapes, seeds)
    draw(results, shapes, seeds)


def report_scores(results: Results, shapes: Sequence[str], seeds: Sequence[int]) -> None:
    """What scores and likeness tell."""
    print("\n| score | " + " | ".join(f"{shape}, {name}" for shape in shapes for name in ("forget", "retain")) + " |")
    print("| --- " * (2 * len(shapes) + 1) + "|")
    for label in ["noise ceiling", *SCORES]:
        cells = [
            shown(values(results, shape, seeds, "influence", f"{label}, {name}"))
            for shape in shapes
            for name in ("forget", "retain")
        ]
        print(f"| {label} | {' | '.join(cells)} |")
    print("\n| near-duplicates | found | precision | recall |\n| --- | --- | --- | --- |")
    for method, thresholds in LIKENESS.items():
        for threshold in thresholds:
            key = f"{method} {threshold:g}"
            cells = [
                shown(values(results, shapes[0], seeds, "near-duplicates", f"{key}, {name}"))
                for name in ("found", "precision", "recall")
            ]
            print(f"| {key} | {' | '.join(cells)} |")


def shown(found: Sequence[float]) -> str:
    """Mean and interval over seeds, where there are several."""
    if not found:
        return ""
    digits = 3 if max(map(abs, found)) < 10 else 0
    return interval(found, digits) if len(found) > 1 else f"{found[0]:.{digits}f}"


def draw(results: Results, shapes: Sequence[str], seeds: Sequence[int]) -> None:
    """D of each way, a point a seed, beside that of the oracles."""
    figure = Figure(figsize=(5 * len(shapes), 9.5), layout="constrained")
    panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
    for panel, shape in zip(panels, shapes, strict=True):
        rows = list(ways(SHAPES[shape].blocks))
        for place, row in enumerate(rows):
            found = values(results, shape, seeds, row, "D forget")
            panel.plot(found, [place] * len(found), "o", color="C0", alpha=0.5, markersize=4)
            if found:
                panel.plot(statistics.mean(found), place, "|", color="black", markersize=10)
        floor = values(results, shape, seeds, "oracles", "D forget")
        panel.axvspan(min(floor), max(floor), color="0.85", label="between oracles")
        panel.axvline(statistics.mean(values(results, shape, seeds, "untouched", "D forget")), color="C3", linewidth=1,
                      label="untouched")  # fmt: skip
        panel.set_yticks(range(len(rows)), rows, fontsize=8)
        panel.set_xscale("log")
        panel.set_xlabel("D on the forget set, nats")
        panel.set_title(f"{shape} parameters")
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8, loc="lower left")
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
