"""Does `recommend` choose well? Ten requests on bundled digits: its choice beside the best in hindsight.

For each request every trial of the rehearsal is repeated on the real request and held against the real oracles, which
`recommend` never saw. Run with `make bench BENCH=recommending`.
"""

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch

from _board_data import BOARDS, QUIET, Board, Corpus, corpus, trained
from _results import Results
from expunge import FleetSettings, Level, Problem, References, Split, recommend, split, unlearn
from expunge.audit.gap import gap, gaps_of_oracles
from expunge.errors import DivergedError
from expunge.recommending import CANDIDATES, Spending
from expunge.training.seeds import generator

BUDGET, ORACLES, WITHIN = 0.2, 3, 1.1
_NO_CACHE = FleetSettings("in-process", cache=False)


@dataclass(frozen=True)
class Trials:
    """How much is computed."""

    name: str
    requests: int
    rows: int
    real_oracles: int
    rates: tuple[float, ...]


SIZES = {"smoke": Trials("smoke", 2, 20, 3, (4.0,)), "quick": Trials("quick", 10, 25, 5, (1.0, 4.0, 16.0))}
BOARD = replace(BOARDS["smoke"], name="recommending", rows=1200)


def main() -> None:
    """Fill the cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="quick")
    size = SIZES[parser.parse_args().size]
    data = corpus("digits", BOARD)
    settings = {"budget": BUDGET, "oracles": ORACLES, "recipe": repr(data.recipe.optimizer)}
    results = Results("recommending", size, settings)
    cells = [
        results.cell(name, lambda name=name, number=number: one(data, BOARD, size, name, number))
        for number, name in enumerate(names(size))
    ]
    show(names(size), cells)


def names(size: Trials) -> list[str]:
    """Half of the requests for a class, half for rows."""
    half = size.requests // 2
    return [f"class {label}" for label in range(10 - half, 10)] + [f"rows {number}" for number in range(half)]


def one(data: Corpus, board: Board, size: Trials, name: str, number: int) -> dict[str, Any]:
    """The ranking of a rehearsal and the gaps that the same trials have on the real request."""
    parts, seed = _parts(data, size, name), 10 + number
    model = trained("digits", board, "all", torch.empty(0, dtype=torch.long), seed).model
    problem = Problem(
        model, data.task, parts.forget, parts.retain, data.holdout, parts.classes, replace(data.recipe, execution=QUIET)
    )
    found = recommend(
        problem, budget=BUDGET, seed=seed, oracles=ORACLES, rates=size.rates, execution=QUIET, fleet=_NO_CACHE
    )
    oracles = [trained("digits", board, name.replace(" ", "-"), parts.indices, 300 + each).model
               for each in range(size.real_oracles)]  # fmt: skip
    references = References.prepare(problem, oracles, settings=Level.QUICK.settings, execution=QUIET)
    spending = Spending.of(problem, BUDGET * data.recipe.epochs * len(parts.retain))
    gaps: dict[str, float | None] = {}
    for trial in found.choice.ranking:
        if trial.note == "over the budget":
            continue
        method = CANDIDATES[trial.method].make(spending, trial.rate)
        try:
            evidence = references.compare(unlearn(problem, method, seed=seed, execution=QUIET))
        except DivergedError:
            gaps[_key(trial.method, trial.rate)] = None
            continue
        gaps[_key(trial.method, trial.rate)] = gap(evidence)
        floor = gaps_of_oracles(evidence)
    chosen = found.choice.ranking[found.choice.chosen]
    best = min(value for value in gaps.values() if value is not None)
    return {
        "chosen": _key(chosen.method, chosen.rate),
        "rehearsed": {_key(trial.method, trial.rate): trial.gap for trial in found.choice.ranking},
        "real": gaps,
        "gap": gaps[_key(chosen.method, chosen.rate)],
        "best": best,
        "oracles": floor,
    }


def show(titles: list[str], cells: list[dict[str, Any]]) -> None:
    """Print each request, and how often the choice was within a tenth of the best."""
    print(
        "\n| request | chosen | its gap | best in hindsight | gap | an oracle |\n| --- | --- | --- | --- | --- | --- |"
    )
    near = like_oracles = 0
    for title, cell in zip(titles, cells, strict=True):
        real = {name: value for name, value in cell["real"].items() if value is not None}
        own = cell["gap"]
        near += own is not None and own <= WITHIN * cell["best"]
        shown = "diverged" if own is None else f"{own:.2f}"
        floor = sum(cell["oracles"]) / len(cell["oracles"])
        like_oracles += own is not None and own <= max(floor, WITHIN * cell["best"])
        print(f"| {title} | {cell['chosen']} | {shown} | {min(real, key=lambda name: real[name])} | "
              f"{cell['best']:.2f} | {floor:.2f} |")  # fmt: skip
    print(f"\nWithin 10 % of the best in hindsight: {near} of {len(cells)}")
    print(f"That, or no further than oracles are: {like_oracles} of {len(cells)}")


def _parts(data: Corpus, size: Trials, name: str) -> Split:
    kind, number = name.split()
    if kind == "class":
        return split(data.train, classes=[int(number)])
    order = torch.randperm(len(data.train), generator=generator(int(number), "rows to forget"))
    return split(data.train, indices=order[: size.rows])


def _key(method: str, rate: float) -> str:
    return f"{method} × {rate:g}"


if __name__ == "__main__":
    main()
