"""The leaderboard's page and its figure, made from the committed results and nothing else."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _board_data import CLASS, MEMORISED, PERSON, RANDOM, Board, Request, requests
from _board_methods import ABSENT, ENTRIES, key
from _results import interval

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "leaderboard.md"
FIGURE = "images/classifiers-{}.svg"

Cells = Mapping[str, Any]

COLUMNS = {
    "forget": "accuracy, forget",
    "retain": "accuracy, retain",
    "holdout": "accuracy, holdout",
    "JS": "divergence from the oracles, forget",
    "RMIA": "membership (RMIA), area, forget",
    "one-shot": "one-shot probe, forget",
    "probe": "linear probe, forget",
    "relearning": "relearning, mean, forget",
    "refit": "relearning, head refitted, mean, forget",
    "8 bits": "accuracy, 8-bit weights, forget",
}

_REQUESTS = {
    CLASS: "all rows of one class",
    RANDOM: "rows drawn at random",
    MEMORISED: "the rows with the largest estimate of memorisation",
    PERSON: "all training pictures of one person",
}


def write(cells: Cells, board: Board) -> None:
    """Write the page and the figure; of the smallest size, which shows nothing, print the page instead."""
    if board.name == "smoke":
        print(page(cells, board))
        return
    PAGE.write_text(page(cells, board), encoding="utf-8")
    draw(cells, board).savefig(DOCS / FIGURE.format(board.name), metadata={"Date": None})


def page(cells: Cells, board: Board) -> str:
    """The page as Markdown."""
    there = [request for request in requests(board) if f"{request.title} · oracles" in cells]
    parts = [_introduction(cells, board), _overview(cells, board, there)]
    parts += [_request(cells, board, request) for request in there]
    return "\n\n".join([*parts, _absent()]) + "\n"


def draw(cells: Cells, board: Board) -> Figure:
    """Distance to the oracle against cost: a panel a request, a point a method and a budget."""
    there = [request for request in requests(board) if f"{request.title} · oracles" in cells]
    rows = -(-len(there) // 2)
    figure = Figure(figsize=(11, 4.2 * max(rows, 1)), layout="constrained")
    panels = figure.subplots(max(rows, 1), 2, squeeze=False).flatten()
    for panel, request in zip(panels, there, strict=False):
        _draw_request(panel, cells, board, request)
    for panel in panels[len(there) :]:
        panel.remove()
    known = {
        label: handle for panel in figure.axes for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=7, fontsize=7, frameon=False)
    return figure


def seeds_of(cells: Cells, board: Board, request: Request, name: str, budget: float) -> list[Any]:
    """The cells of a method at a budget, of the seeds that are there."""
    found = [cells.get(f"{key(request, name, budget)} · seed {seed}") for seed in board.seeds]
    return [cell for cell in found if cell is not None]


def _introduction(cells: Cells, board: Board) -> str:
    counts = [len(seeds_of(cells, board, request, name, budget)) for request in requests(board)
              for name in ENTRIES for budget in board.budgets]  # fmt: skip
    full = max(counts, default=0)
    incomplete = sum(0 < count < len(board.seeds) for count in counts)
    lacking = f" {incomplete} rows have fewer originals; `n` says how many." if incomplete else ""
    missing = [f"{each.corpus}, {each.kind}" for each in requests(board) if f"{each.title} · oracles" not in cells]
    lacking += f" **Not computed yet**: {'; '.join(missing)}." if missing else ""
    budgets = " and ".join(f"{budget:.0%}" for budget in board.budgets)
    return f"""# Leaderboard: methods for classifiers

*Made from `benchmarks/results/classifiers-*-{board.name}.json` by `python benchmarks/classifiers.py --page`; computed
by `make bench BENCH=classifiers`.*

Every method of the library for classifiers, at {budgets} of a retrain, beside {board.oracles} models retrained without
the forget set. **Development and confirmation are apart**: the rate of each method was chosen among
{len(board.multiples)} multiples of its published one ({", ".join(f"{each:g}" for each in board.multiples)}) on another
request (another class or person, other rows) with another original and other oracles, with as many trials for each.
What the tables show was computed once, on {full} originals that were used for nothing else.{lacking}

- **Data**: {_data(board)}. Models are trained without augmentation, so that they learn single rows by heart.
- **Requests**: {"; ".join(f"*{kind}*: {text}" for kind, text in _REQUESTS.items())}. Requests for single rows are of
  {board.forgotten} rows, 2 % and not 1 % of the training set: one row of 30 would be a step of .033, coarser than
  the audit's margin of .02.
- **Memorisation** of a row is the difference of its label's mean probability between models that were trained with it
  and without it, {board.fleet} models on random halves: a cheap estimate, which ranks rows and is no figure of single
  ones.
- **Budget**: examples that pass forward and backward, a pass forward alone for a third. Methods that count whole
  epochs, or whose measuring alone costs more, take what they must, also where that is over the budget. All have the
  batch size of the recipe; only `SCRUB` takes 32 forget examples a step. The cost in the table is wall time,
  against some steps of retraining timed immediately before and after.
- **Other settings** are each method's defaults, but for these: `FineTune` has a one-cycle schedule, `NegGradPlus` clips
  gradients at 1, `SCRUB` has a pass over the forget set in every epoch but a last one, `UNSIR` reads the whole
  retain set. The defaults of `SelectiveReset` and `Extrapolate`, which are ours, were chosen on [requests of their
  own](removal.md#measured): classes 0 and 3 of CIFAR-10, other originals.
- **Gap** ranks: the root mean square, over all judged measures of the audit on whole sets, of the distance from the
  oracles' mean in units of what one more oracle would deviate (or of the margin, where that is larger), nothing in a
  direction that does no harm. Lower is nearer; an oracle comes to the figure in its row. A method that diverged on an
  original comes last on that request. *From oracle* is the gap of the same method started from a model that never saw
  the forget set, at {board.budgets[-1]:.0%}: what it does to a model that has nothing to forget.
- **†**: the audit finds this measure to differ from retraining, corrected for the number of measures, in most of the
  originals. Without it, a difference up to the one in the row *found with 80 % power* may have been missed. How often
  the audit calls models of known truth what they are is on [the page about the verdict](verdict.md#does-it-work).
- **KLoM** in nats, median over the forget rows, of normal distributions fitted to the margins of one unlearned model an
  original and of the oracles (histograms, as published, are empty with so few models); in brackets what chance gives
  where the same models are dealt at random.

![Distance to the oracles against cost]({FIGURE.format(board.name)})

Line: what no other method beats in both. Grey band: the gaps of oracles among each other."""


def _data(board: Board) -> str:
    texts = {
        "MNIST": f"MNIST ({board.rows:,} training images, a small convolutional network)",
        "CIFAR-10": f"CIFAR-10 (a JPEG copy, {board.rows:,} training images, ResNet-9 of width 8)",
        "ORL faces": "ORL faces (40 people, 7 pictures each to train on, 3 held out, a small convolutional network)",
        "digits": "scikit-learn's digits",
    }
    return "; ".join(texts[name] for name in board.data)


def _overview(cells: Cells, board: Board, there: Sequence[Request]) -> str:
    """Gaps alone, all requests side by side, nearest first."""
    lines = ["## Gaps", ""]
    for budget in board.budgets:
        table = {
            name: [_mean_gap(seeds_of(cells, board, request, name, budget)) for request in there] for name in ENTRIES
        }
        shown = {name: gaps for name, gaps in table.items() if any(gap is not None for gap in gaps)}
        order = sorted(shown, key=lambda name: _mean_rank(name, shown))
        heads = " | ".join(f"{request.corpus}, {request.kind}" for request in there)
        lines += [f"At {budget:.0%} of a retrain, by mean rank:", "", f"| | mean rank | {heads} |"]
        lines += ["| --- " * (len(there) + 2) + "|"]
        for name in order:
            gaps = " | ".join("" if gap is None else _shown(gap) for gap in shown[name])
            lines.append(f"| {_called(name)} | {_mean_rank(name, shown):.1f} | {gaps} |")
        oracles = [cells[f"{request.title} · oracles"]["gaps"] for request in there]
        lines += ["| *an oracle* | | " + " | ".join(f"{statistics.mean(gaps):.2f}" for gaps in oracles) + " |", ""]
    return "\n".join(lines).rstrip()


def _request(cells: Cells, board: Board, request: Request) -> str:
    known = cells[f"{request.title} · oracles"]
    names = [name for name in COLUMNS.values() if name in known["measures"]]
    heads = [head for head, name in COLUMNS.items() if name in names]
    head = ["", "n", "rate ×", "gap", *heads, "KLoM", "cost %", "from oracle", "verdicts"]
    lines = [
        f"## {request.corpus}: {request.kind}",
        "",
        f"{known['forget rows']:,} rows to forget, {known['retain rows']:,} to keep; a retrain takes "
        f"{statistics.mean(known['seconds']):.0f} s.",
    ]
    for budget in board.budgets:
        lines += ["", f"### {request.corpus}, {request.kind}, {budget:.0%}", "", f"| {' | '.join(head)} |"]
        lines += ["| --- " * len(head) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in _fixed_rows(cells, board, request, names)]
        rows = {name: seeds_of(cells, board, request, name, budget) for name in ENTRIES}
        order = sorted((name for name in rows if rows[name]), key=lambda name: _for_order(rows[name]))
        lines += [f"| {' | '.join(_row(cells, board, request, name, budget, names))} |" for name in order]
    return "\n".join(lines)


def _fixed_rows(cells: Cells, board: Board, request: Request, names: Sequence[str]) -> list[list[str]]:
    """Oracles, what would have been found, the originals."""
    known = cells[f"{request.title} · oracles"]
    measures = known["measures"]
    tail = ["", "", "", ""]
    oracles = [f"{statistics.mean(measures[name]['oracles']):.3f}" for name in names]
    power = [f"{measures[name]['detectable']:.3f}" if measures[name]["detectable"] else "" for name in names]
    untouched = [cells.get(f"{request.title} · untouched · seed {seed}") for seed in board.seeds]
    found = [cell for cell in untouched if cell is not None]
    rows = [
        ["*oracles*", str(board.oracles), "", f"{statistics.mean(known['gaps']):.2f}", *oracles, "", "100", "", ""],
        ["*found with 80 % power*", "", "", "", *power, *tail],
    ]
    if found:
        rows.append(
            ["*original*", str(len(found)), "", _gap(found), *_values(found, names), *tail[:2], "", _verdicts(found)]
        )
    return rows


def _row(cells: Cells, board: Board, request: Request, name: str, budget: float, names: Sequence[str]) -> list[str]:
    found = seeds_of(cells, board, request, name, budget)
    sound = [cell for cell in found if cell["gap"] is not None]
    if not sound:
        return [_called(name), str(len(found)), "", "diverged", *[""] * (len(names) + 4)]
    where = key(request, name, budget)
    klom = cells.get(f"{where} · KLoM")
    started = cells.get(f"{key(request, name, board.budgets[-1])} · from an oracle")
    shares = statistics.mean(cell["share of a retrain"] for cell in sound)
    return [
        _called(name),
        str(len(sound)),
        f"{sound[0]['multiple']:g}",
        _gap(sound),
        *_values(sound, names),
        "" if klom is None else f"{klom['median']:.2f} ({klom['by chance']:.2f})",
        f"{100 * shares:.0f}",
        "" if started is None or started["gap"] is None else f"{started['gap']:.2f}",
        _verdicts(found),
    ]


def _values(found: Sequence[Any], names: Sequence[str]) -> list[str]:
    shown: list[str] = []
    for name in names:
        values = [cell["values"][name] for cell in found if name in cell["values"]]
        often = sum(name in cell["deviating"] for cell in found)
        mark = "†" if 2 * often > len(found) else ""
        shown.append(f"{statistics.mean(values):.3f}{mark}" if values else "")
    return shown


def _gap(found: Sequence[Any]) -> str:
    gaps = [cell["gap"] for cell in found]
    return interval(gaps, 2) if len(gaps) > 1 else f"{gaps[0]:.2f}"


def _verdicts(found: Sequence[Any]) -> str:
    counts = Counter(
        "diverged" if cell["gap"] is None else cell["verdict"].removesuffix(" from retraining") for cell in found
    )
    return ", ".join(f"{verdict} {count}" for verdict, count in counts.most_common())


def _called(name: str) -> str:
    return f"*{name}*" if ENTRIES[name].control else f"`{name}`"


def _mean_gap(found: Sequence[Any]) -> float | None:
    """None where nothing was computed, and infinite where the method diverged on one of the originals."""
    gaps = [math.inf if cell["gap"] is None else cell["gap"] for cell in found]
    return statistics.mean(gaps) if gaps else None


def _shown(gap: float) -> str:
    return f"{gap:.2f}" if math.isfinite(gap) else "diverged"


def _for_order(found: Sequence[Any]) -> float:
    gap = _mean_gap(found)
    return math.inf if gap is None else gap


def _mean_rank(name: str, table: Mapping[str, Sequence[float | None]]) -> float:
    """Mean place, 1 for the nearest, over the requests that a method is for; where it diverged it comes last."""
    places: list[float] = []
    for column in range(len(table[name])):
        gaps = [row[column] for row in table.values() if row[column] is not None]
        own = table[name][column]
        if own is not None:
            places.append(1 + sum(gap < own for gap in gaps if gap is not None))
    return statistics.mean(places)


def _absent() -> str:
    rows = "\n".join(f"- `{name}` {reason}." for name, reason in ABSENT.items())
    return f"## Not in the tables\n\n{rows}"


def _draw_request(panel: Axes, cells: Cells, board: Board, request: Request) -> None:
    gaps = cells[f"{request.title} · oracles"]["gaps"]
    panel.axhspan(min(gaps), max(gaps), color="grey", alpha=0.25)
    points: list[tuple[float, float, str]] = []
    for number, (name, entry) in enumerate(ENTRIES.items()):
        for budget in board.budgets:
            found = seeds_of(cells, board, request, name, budget)
            if found and all(cell["gap"] is not None for cell in found):
                across = 100 * statistics.mean(cell["share of a retrain"] for cell in found)
                up = statistics.mean(cell["gap"] for cell in found)
                marker = "x" if entry.control else "osv^DPX"[number % 7]
                panel.plot(across, up, marker, color=f"C{number % 10}", label=name, linestyle="none")
                points.append((across, up, name))
    front = _front(points)
    panel.plot([across for across, _, _ in front], [up for _, up, _ in front], color="black", linewidth=0.8)
    for across, up, name in front:
        panel.annotate(name, (across, up), fontsize=7, textcoords="offset points", xytext=(4, 4))
    panel.set(yscale="log", title=f"{request.corpus}: {request.kind}", xlabel="% of a retrain", ylabel="gap")


def _front(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The points that no other beats in cost and gap, by cost."""
    chosen: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not chosen or point[1] < chosen[-1][1]:
            chosen.append(point)
    return chosen
