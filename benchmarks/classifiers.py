"""The leaderboard: every method for classifiers beside oracles, at 10 and 20 % of a retrain.

Rates are chosen on development requests (other classes, other rows, another original) with the same number of trials
for every method. Run with `make bench BENCH=classifiers`; it goes on where it was stopped. `--page` writes the page
and the figure from the results that are there, `--only` fills the rows of one data set, which has a file of its own.
"""

import argparse
from collections.abc import Sequence

import _board
import _board_page
from _board_data import BOARDS, DEVELOPMENT, Board, Request, requests
from _board_methods import Entry, entries, key
from _results import Results


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(BOARDS), default="quick")
    parser.add_argument("--only", help="one data set, such as MNIST")
    parser.add_argument("--page", action="store_true", help="compute nothing")
    given = parser.parse_args(arguments)
    board = BOARDS[given.size]
    settings = {"audit": repr(_board.AUDIT)}
    results = {name: Results("classifiers", board, settings, part=name.replace(" ", "-")) for name in board.data}
    if not given.page:
        for request in requests(board):
            if given.only in (None, request.corpus):
                fill(results[request.corpus], request, board)
    _board_page.write({key: cell for part in results.values() for key, cell in part.cells.items()}, board)


def fill(results: Results, request: Request, board: Board) -> None:
    """All cells of one request: cheap ones of all methods first, so that a table can be read early."""
    results.cell(f"{request.title} · oracles", lambda: _board.oracles(request, board))
    rows = [(name, entry, budget) for budget in board.budgets for name, entry in entries(request.kind).items()]
    for seed in board.seeds:
        results.cell(
            f"{request.title} · untouched · seed {seed}", lambda seed=seed: _board.untouched(request, board, seed)
        )
    for name, entry, budget in rows:
        tuned(results, request, board, name, entry, budget)
    for seed in board.seeds:
        for name, entry, budget in rows:
            multiple = tuned(results, request, board, name, entry, budget)
            if multiple is not None:
                results.cell(
                    f"{key(request, name, budget)} · seed {seed}",
                    lambda name=name, budget=budget, multiple=multiple, seed=seed: (
                        _board.row(request, board, name, budget, multiple, seed) | {"multiple": multiple}
                    ),
                )
    for name, entry, budget in rows:
        finish(results, request, board, name, entry, budget)


def finish(results: Results, request: Request, board: Board, name: str, entry: Entry, budget: float) -> None:
    """What is computed once over the seeds: KLoM, and the method started from an oracle."""
    multiple = tuned(results, request, board, name, entry, budget)
    cells = [results.cells.get(f"{key(request, name, budget)} · seed {seed}") for seed in board.seeds]
    if multiple is None or any(cell is None or cell["gap"] is None for cell in cells):
        return
    where = key(request, name, budget)
    results.cell(f"{where} · KLoM", lambda: _board.klom(request, board, name, budget, multiple))
    if budget == board.budgets[-1]:
        results.cell(f"{where} · from an oracle", lambda: _board.from_an_oracle(request, board, name, budget, multiple))


def tuned(results: Results, request: Request, board: Board, name: str, entry: Entry, budget: float) -> float | None:
    """The multiple of the published rate with the smallest gap on the development request; None where all diverged."""
    if not entry.tuned:
        return 1.0
    other = Request(request.corpus, request.kind, DEVELOPMENT)
    found = {
        multiple: results.cell(
            f"{key(other, name, budget)} · {multiple:g}",
            lambda multiple=multiple: _board.tried(other, board, name, budget, multiple),
        )["gap"]
        for multiple in board.multiples
    }
    usable = {multiple: value for multiple, value in found.items() if value is not None}
    return min(usable, key=lambda multiple: usable[multiple]) if usable else None


if __name__ == "__main__":
    main()
