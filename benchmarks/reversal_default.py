"""How far gradient reversal should go beyond its target before the repair, and in which layers.

Candidates are compared on development worlds and one is chosen by a rule that is fixed here; then all are measured
again on confirmation worlds that had no part in the choice. Development: three forget sets of contracts and the
demonstration's first five people. Confirmation: contracts with another base, and five other people. The gap is that
between the forget loss of the untouched model and the target. Run with `make bench BENCH=reversal_default` and
EXPUNGE_DATA_DIR set.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from matplotlib.figure import Figure

from _results import Results, interval, size_from_arguments
from _reversal import SHAPES, World, biography_worlds, log_folder, pistol, pistol_world
from expunge import GradientReversal


@dataclass(frozen=True)
class Candidate:
    """How far to go beyond the target, in nats and in gaps, and what is moved."""

    nats: float = 0.0
    gaps: float = 0.0
    layers: tuple[str, ...] = ("all",)

    def method(self, world: World) -> GradientReversal:
        """For a world, whose gap it needs."""
        overshoot = self.nats / world.gap + self.gaps
        steps = 30 if overshoot > 0 else 0
        return GradientReversal(epochs="all", overshoot=overshoot, repair_steps=steps, layers=self.layers)


CANDIDATES = {
    "all layers": Candidate(),
    "all layers, 0.25 nats further": Candidate(0.25),
    "all layers, 0.5 nats further": Candidate(0.5),
    "all layers, 1 nat further": Candidate(1.0),
    "all layers, half the gap further": Candidate(gaps=0.5),
    "all layers, the gap further": Candidate(gaps=1.0),
    "embedding": Candidate(layers=("embedding",)),
    "embedding, half the gap further": Candidate(gaps=0.5, layers=("embedding",)),
}
"""Those that go further are repaired until the target, in at most 30 steps."""

PEOPLE = {"development": range(5), "confirmation": range(10, 30, 4)}
CONTRACTS = {"development": (0, range(100)), "confirmation": (1, range(100, 200))}
"""Seed of the base, and seeds of which contracts are forgotten."""

PLAN = {"quick": (("0.2 M",), 3, 3), "full": (("0.4 M", "1.3 M"), 10, 5)}
"""Shapes, seeds and oracles a seed, of the contracts."""

Cells = Mapping[str, Mapping[str, float]]


def main() -> None:
    """Fill the cells, choose, confirm, draw."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    pistol()
    shapes, seeds, oracles = PLAN[size.name]
    settings = {"shapes": shapes, "seeds": seeds, "oracles": oracles, "candidates": list(CANDIDATES), "threads": 1}
    results = Results("reversal_default", size, settings)
    worlds = {name: fill_people(results, name) for name in PEOPLE}
    for part, shape in product(worlds, shapes):
        worlds[part] += [fill_contracts(results, part, shape, seed, oracles) for seed in CONTRACTS[part][1][:seeds]]
    chosen = choose(worlds["development"])
    for name, found in worlds.items():
        print(f"\n{name}: {len(found)} worlds\n")
        table(found)
    print(f"\nchosen on development worlds: {chosen}")
    for other in CANDIDATES:
        if other != chosen:
            print(f"confirmation, chosen against {other}: {ratio(worlds['confirmation'], chosen, other)}")
    draw(results, worlds)


def fill_people(results: Results, part: str) -> list[Cells]:
    """A world for each person; the original is trained only where a cell is missing."""
    rows = ["oracles", "untouched", *CANDIDATES]
    keys = {person: {row: f"{part} · person {person} · {row}" for row in rows} for person in PEOPLE[part]}
    missing = [person for person, named in keys.items() if not set(named.values()) <= set(results.cells)]
    with log_folder() as folder:
        for person, world in zip(missing, biography_worlds(missing, 40, 2, folder), strict=True):
            fill(results, f"{part} · person {person}", world)
    return [{row: results.cells[key] for row, key in named.items()} for named in keys.values()]


def fill_contracts(results: Results, part: str, shape: str, seed: int, oracles: int) -> Cells:
    """A world of contracts."""
    prefix, rows = f"{part} · {shape} · seed {seed}", ["oracles", "untouched", *CANDIDATES]
    if not {f"{prefix} · {row}" for row in rows} <= set(results.cells):
        with log_folder() as folder:
            fill(results, prefix, pistol_world(SHAPES[shape], seed, CONTRACTS[part][0], oracles, folder))
    return {row: results.cells[f"{prefix} · {row}"] for row in rows}


def fill(results: Results, prefix: str, world: World) -> None:
    """Every cell of a world."""
    results.cell(f"{prefix} · oracles", world.floor)
    results.cell(f"{prefix} · untouched", lambda: world.measure(world.problem.model))
    for name, candidate in CANDIDATES.items():
        results.cell(f"{prefix} · {name}", lambda candidate=candidate: world.reversed(candidate.method(world)))


def choose(worlds: Sequence[Cells]) -> str:
    """The rule: nearest on the forget set; of those not told apart from it, nearest on retained examples.

    Nearness is the mean over worlds of the logarithm of D, so that no world counts for its scale. Two are told apart
    where the 95 % interval of the paired difference leaves out 0.
    """
    best = min(CANDIDATES, key=lambda name: statistics.mean(logs(worlds, name, "D forget")))
    close = [name for name in CANDIDATES if name == best or not apart(differences(worlds, name, best))]
    return min(close, key=lambda name: statistics.mean(logs(worlds, name, "D retain")))


def logs(worlds: Iterable[Cells], name: str, column: str) -> list[float]:
    """Logarithm of a figure of a candidate in each world."""
    return [math.log(cells[name][column]) for cells in worlds]


def differences(worlds: Sequence[Cells], one: str, other: str) -> list[float]:
    """Of log D on the forget set, in each world."""
    pairs = zip(logs(worlds, one, "D forget"), logs(worlds, other, "D forget"), strict=True)
    return [first - second for first, second in pairs]


def apart(values: Sequence[float]) -> bool:
    """Whether the 95 % interval of the mean leaves out 0."""
    mean, _, half = interval(values, 9).partition(" ± ")
    return abs(float(mean)) > float(half)


def ratio(worlds: Sequence[Cells], one: str, other: str) -> str:
    """D of one over D of another, geometric mean with a 95 % interval."""
    mean, _, half = interval(differences(worlds, one, other), 9).partition(" ± ")
    low, middle, high = (math.exp(float(mean) + sign * float(half)) for sign in (-1, 0, 1))
    return f"D is {middle:.2f} times as large ({low:.2f} to {high:.2f})"


def table(worlds: Sequence[Cells]) -> None:
    """Means over worlds; D relative to that of the untouched model as a geometric mean."""
    columns = ("forget", "retain", "holdout", "D forget", "D retain", "D holdout")
    print(f"| candidate | {' | '.join(columns)} | D forget of untouched | nearest in |")
    print("| --- " * (len(columns) + 3) + "|")
    firsts = [min(CANDIDATES, key=lambda name, cells=cells: cells[name]["D forget"]) for cells in worlds]
    for name in ("oracles", "untouched", *CANDIDATES):
        figures = [statistics.mean(cells[name][column] for cells in worlds) for column in columns]
        share = math.exp(statistics.mean(differences(worlds, name, "untouched")))
        print(f"| {name} | {' | '.join(f'{each:.3f}' for each in figures)} | {share:.2f} | {firsts.count(name)} |")


def draw(results: Results, worlds: Mapping[str, Sequence[Cells]]) -> None:
    """D relative to the untouched model's, a point a world."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(worlds), sharey=True, squeeze=False)[0]
    rows = ["oracles", *CANDIDATES]
    for panel, (name, found) in zip(panels, worlds.items(), strict=True):
        for place, row in enumerate(rows):
            shares = [math.exp(each) for each in differences(found, row, "untouched")]
            panel.plot(shares, [place] * len(shares), "o", color="C0", alpha=0.5, markersize=4)
            panel.plot(statistics.geometric_mean(shares), place, "|", color="black", markersize=10)
        panel.axvline(1, color="grey", linewidth=1)
        panel.set_xscale("log")
        panel.set_yticks(range(len(rows)), rows, fontsize=8)
        panel.set_xlabel("D on the forget set, of the untouched model's")
        panel.set_title(f"{name}, {len(found)} worlds")
    panels[0].invert_yaxis()
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
