"""The page of the benchmark of image-to-image models, made from its results, and its plots."""

# pyright: reportUnknownMemberType=false

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from _i2i_worlds import World
from _results import Results, interval

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "image-benchmark.md"
PLACES = ("error, forget", "error, retain", "FID, forget", "FID, retain")
LIKE_ORACLES = {"forget error": 0.1, "forget FID": 0.1, "retain error": 0.05, "retain FID": 0.05}
"""How far a row may be from the mean of the oracles; for forget images it may also lie among them."""

_INTRODUCTION = """# Image-to-image models: methods beside retraining

*Made from `benchmarks/results/i2i-*.json` by `python benchmarks/i2i.py --page`; computed by `make bench BENCH=i2i`.
What it says in words, and what came out of it, stands under [Image-to-image
models](image-to-image.md#the-benchmark).*

- **Originals and oracles** never share a seed, and take equally many steps: with fewer an oracle would restore
  everything worse. Intervals are 95 % t intervals over models: three, so that they are wide.
- **Rows**: `retain` is given the real retain set, `proxy` unseen pictures of half of the kinds that are kept, `forget
  only` nothing. `paper` is `LatentRemap` towards noise (at 5e-5 as published, and at 1e-3 with alpha .2), `oracle`
  and `neighbours` are its presets, `Extrapolate` its preset `images`; `c found` finds how far to go by itself.
- **Development and confirmation are apart**: rates, and how far to go, were chosen on MNIST where 2 and 9 are
  forgotten, with an original and oracles that are in no table. The other worlds take the same settings; the
  baselines' rate was not tuned for each.
- **Error**: mean square on the hidden part, times 1,000. **FID**: Fréchet distance, the `projected` variant on
  features of a small classifier of all kinds, of whole pictures with their visible part. The **mean image**, put in
  the hidden part, is what a model comes to that learned nothing else.
- **Probe**: area under the curve of a linear probe of the encoder's features that tells forget from retain set.
- **Relearned**: error on other forget images after 20 steps on 64 of them (8 of a person's). **Fresh decoder**: the
  same after the decoder was replaced by one trained for 100 steps on those and 500 retained images (all 624 of
  faces), encoder frozen.
  In both, lower means that more comes back.
- **Distance**: squared difference of restored forget images from the oracles', where 1 is that between oracles.
- **Cost**: processor time as a share of that of the original's training; other work shared the machine.
"""


def page(parts: Mapping[str, tuple[Results, World, Sequence[str]]]) -> str:
    """Every world that was computed, as Markdown."""
    return "\n".join([_INTRODUCTION, *(report(*part) for part in parts.values())])


def report(results: Results, world: World, rows: Sequence[str]) -> str:
    """One world: its models, what was asked of the methods, and every row, as Markdown."""
    first, *others = world.corruptions
    names = ("original", "oracle", *rows)
    lines = [f"## {world.name}: {world.about}", "", f"{world.seeds} originals, {world.oracles} oracles; {world.passes} "
             f"passes over the training pictures, by batches of {world.batch_size}.", ""]  # fmt: skip
    lines += [*_asked(results, world), "", f"Hidden: {first}.", ""]
    lines += _table(
        [first, *PLACES, "probe", "relearned", "fresh decoder", "distance", "cost"],
        [["mean image", *_restored(results, world, "mean image", first), *[""] * 5],
         *([row, *_restored(results, world, row, first), *_besides(results, world, row)] for row in names)],
    )  # fmt: skip
    lines += ["", f"Beside the row's own original. Order in cells: {', '.join(world.corruptions)}.", ""]
    lines += _table(
        ["", "forget FID, times", "retain FID, times"],
        [[row, *(_times(results, world, row, f"{on} FID") for on in ("forget", "retain"))] for row in rows],
    )
    lines += ["", "Beside the mean of the oracles, in percent, in the same order.", ""]
    lines += _table(
        ["", *LIKE_ORACLES],
        [[row, *(_percent(_off(results, world, row, figure)) for figure in LIKE_ORACLES)]
         for row in ("original", *rows)],
    )  # fmt: skip
    for corruption in others:
        lines += ["", f"Hidden: {corruption}.", ""]
        lines += _table(
            [corruption, *PLACES],
            [[row, *_restored(results, world, row, corruption)] for row in ("mean image", *names)],
        )
    return "\n".join([*lines, ""])


def draw(results: Results, world: World, weights: Sequence[float], counts: Sequence[int]) -> Figure:
    """Error on both sets by alpha, and by how many images are held."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    held = [f"{count} retained" for count in counts[:-1]]
    sweeps = (("alpha", [_row_of_alpha(world, weight) for weight in weights], weights),
              ("retained images", [*held, "paper, retain"], counts))  # fmt: skip
    name = next(iter(world.corruptions))
    for axes, (title, rows, places) in zip(figure.subplots(1, 2, sharey=True), sweeps, strict=True):
        for on, colour in (("forget", "#D55E00"), ("retain", "#0072B2")):
            values = [_values(results, world, row, f"{on} error, {name}") for row in rows]
            means = [statistics.mean(each) for each in values]
            axes.plot(places, means, "o-", color=colour, label=on)
            for place, each in zip(places, values, strict=True):
                axes.plot([place] * len(each), each, ".", color=colour, alpha=0.5)
            for model, line in (("oracle", "--"), ("original", ":")):
                level = statistics.mean(_values(results, world, model, f"{on} error, {name}"))
                axes.axhline(level, color=colour, linestyle=line, linewidth=1, label=f"{on}, {model}")
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places], minor=False)
        axes.minorticks_off()
        axes.set_xlabel(title)
    figure.axes[0].set_ylabel(f"error, {name}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def _row_of_alpha(world: World, weight: float) -> str:
    return "paper, retain" if weight == world.remap["forget_weight"] else f"alpha {weight:g}"


def _asked(results: Results, world: World) -> list[str]:
    """The targets, and on how many of the tasks each is met."""
    count = len(world.corruptions)
    rows: list[list[str]] = []
    for row, most in (("paper, published rate", 0.1), ("paper, retain", 0.1), ("paper, proxy", 0.2)):
        doubled = _doubled(results, world, row, most)
        target = f"forget FID at least 2 times the original's, retain FID moves by at most {most:.0%}"
        rows.append([row, target, f"{doubled} of {count} tasks"])
    for row in ("oracle, retain", "oracle, proxy", "Extrapolate", "neighbours, retain", "original"):
        if f"0: {row}" in results.cells:
            rows.append([row, "within 10 % of the oracles or among them (forget), within 5 % (retain)",
                         "; ".join(f"{figure} {_met(results, world, row, figure)}" for figure in LIKE_ORACLES)
                         + f", of {count} tasks each"])  # fmt: skip
            over = _mean(results, world, row, "probe") - max(_values(results, world, "oracle", "probe"))
            rows.append([row, "probe no higher than the highest oracle's", f"{over:+.3f}"])
        if f"0: {row}" in results.cells and row != "original":
            cost = 100 * _mean(results, world, row, "cost")
            rows.append([row, "at most 10 % of training", f"{cost:.1f} %"])
    return _table(["row", "asked", "came out"], rows)


def _doubled(results: Results, world: World, row: str, most: float) -> int:
    """On how many tasks the forget distance is doubled and the retain distance is not moved by more than that."""
    forget, retain = (
        [statistics.mean(each) for each in _paired(results, world, row, f"{on} FID")] for on in ("forget", "retain")
    )
    return sum(one >= 2 and abs(other - 1) <= most for one, other in zip(forget, retain, strict=True))


def _met(results: Results, world: World, row: str, figure: str) -> int:
    """On how many tasks a row is near enough to the oracles."""
    among = [figure.startswith("forget") and _inside(results, world, row, f"{figure}, {each}")
             for each in world.corruptions]  # fmt: skip
    near = [abs(share) <= LIKE_ORACLES[figure] for share in _off(results, world, row, figure)]
    return sum(one or other for one, other in zip(among, near, strict=True))


def _times(results: Results, world: World, row: str, figure: str) -> str:
    """A row over its own original, the first task with an interval."""
    first, *others = _paired(results, world, row, figure)
    return ", ".join([_with_interval(first, 2), *(f"{statistics.mean(each):.2f}" for each in others)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _percent(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:+.0f}" for share in shares)


def _off(results: Results, world: World, row: str, figure: str) -> list[float]:
    """By corruption, by what share the mean of a row is off the mean of the oracles."""
    names = [f"{figure}, {each}" for each in world.corruptions]
    return [_mean(results, world, row, name) / _mean(results, world, "oracle", name) - 1 for name in names]


def _paired(results: Results, world: World, row: str, figure: str) -> list[list[float]]:
    """By corruption and seed, a row over its own original."""
    pairs = [
        (_values(results, world, row, name), _values(results, world, "original", name))
        for name in (f"{figure}, {each}" for each in world.corruptions)
    ]
    return [[own / before for own, before in zip(*pair, strict=True)] for pair in pairs]


def _inside(results: Results, world: World, row: str, figure: str) -> bool:
    """Whether the mean of a row lies between the lowest and the highest oracle."""
    oracles = _values(results, world, "oracle", figure)
    return min(oracles) <= _mean(results, world, row, figure) <= max(oracles)


def _restored(results: Results, world: World, row: str, corruption: str) -> list[str]:
    """Error and Fréchet distance, on what is forgotten and on what is kept."""
    cells: list[str] = []
    for what, factor, digits in (("error", 1000, 1), ("FID", 1, 2)):
        for on in ("forget", "retain"):
            values = _values(results, world, row, f"{on} {what}, {corruption}")
            cells.append(_with_interval([factor * value for value in values], digits))
    return cells


def _besides(results: Results, world: World, row: str) -> list[str]:
    """What the encoder holds, what an attacker brings back, how far from oracles, and what it cost."""
    apart = _mean(results, world, "oracle", "distance")
    figures = (("probe", 1, 3), ("relearned", 1000, 1), ("fresh decoder", 1000, 1), ("distance", 1 / apart, 2))
    cells = [
        _with_interval([factor * value for value in _values(results, world, row, name)], digits)
        for name, factor, digits in figures
    ]
    trained = row in {"original", "oracle"}
    return [*cells, "" if trained else f"{100 * _mean(results, world, row, 'cost'):.1f} %"]


def _with_interval(values: Sequence[float], digits: int) -> str:
    return interval(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def _mean(results: Results, world: World, row: str, figure: str) -> float:
    return statistics.mean(_values(results, world, row, figure))


def _values(results: Results, world: World, row: str, figure: str) -> list[float]:
    return [float(cell[figure]) for cell in _of(results, world, row)]


def _of(results: Results, world: World, row: str) -> list[dict[str, float]]:
    if row == "mean image":
        return [results.cells[row]]
    if row == "oracle":
        return [results.cells[f"oracle {number}"] for number in range(world.oracles)]
    return [results.cells[f"{seed}: {row}"] for seed in range(world.seeds)]
