"""Tables, targets and plots of the benchmark of image-to-image models."""

# pyright: reportUnknownMemberType=false

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from scipy import stats

from _i2i_worlds import World
from _results import Results

PLACES = ("error, forget", "error, retain", "FID, forget", "FID, retain")


def report(results: Results, world: World, rows: Sequence[str]) -> None:
    """Means with 95 % t intervals over models, as Markdown, and what the targets come to.

    Errors, relearned errors too, are mean squares times 1,000; distances are from oracles, beside that between oracles.
    """
    print(f"\n## {world.name}: {world.about}; {world.seeds} originals, {world.oracles} oracles")
    first, *others = world.corruptions
    names = ("original", "oracle", *rows)
    for corruption in others:
        _print([corruption, *PLACES])
        for row in ("mean image", *names):
            _print([row, *_restored(results, world, row, corruption)], head=False)
    _print([first, *PLACES, "probe", "relearned", "fresh decoder", "distance", "cost"])
    _print(["mean image", *_restored(results, world, "mean image", first), *[""] * 5], head=False)
    for row in names:
        _print([row, *_restored(results, world, row, first), *_besides(results, world, row)], head=False)
    _targets(results, world, rows)


def draw(results: Results, world: World, weights: Sequence[float], counts: Sequence[int]) -> None:
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
    figure.savefig(results.figure, metadata={"Date": None})


def _row_of_alpha(world: World, weight: float) -> str:
    return "paper, retain" if weight == world.remap["forget_weight"] else f"alpha {weight:g}"


def _targets(results: Results, world: World, rows: Sequence[str]) -> None:
    """What is asked of `paper`, beside the original, and of `oracle`, beside the oracles: each corruption in turn."""
    _print(["beside the original", "forget FID, times", "retain FID, times", "twice, and within 10 %"])
    for row in rows:
        forget, retain = (_paired(results, world, row, f"{on} FID") for on in ("forget", "retain"))
        means = [(statistics.mean(one), statistics.mean(other)) for one, other in zip(forget, retain, strict=True)]
        met = sum(one >= 2 and abs(other - 1) <= 0.1 for one, other in means)
        cells = [", ".join([_interval(each[0], 2), *(f"{statistics.mean(other):.2f}" for other in each[1:])])
                 for each in (forget, retain)]  # fmt: skip
        _print([row, *cells, str(met)], head=False)
    kinds = (("forget error", 0.1), ("forget FID", 0.1), ("retain error", 0.05), ("retain FID", 0.05))
    heads = [head for kind, _ in kinds for head in (f"{kind}, %", "met")]
    _print(["beside the oracles", *heads, "probe above the highest"])
    for row in ("original", *rows):
        cells = [cell for kind, least in kinds for cell in _beside_oracles(results, world, row, kind, least)]
        over = _mean(results, world, row, "probe") - max(_values(results, world, "oracle", "probe"))
        _print([row, *cells, f"{over:+.3f}"], head=False)


def _beside_oracles(results: Results, world: World, row: str, figure: str, least: float) -> tuple[str, str]:
    """By how much a row is off the mean of the oracles, and how often that is within the target."""
    shares = [ratio - 1 for ratio in _ratios(results, world, row, figure)]
    inside = [figure.startswith("forget") and _inside(results, world, row, f"{figure}, {each}")
              for each in world.corruptions]  # fmt: skip
    met = sum(abs(share) <= least or own for share, own in zip(shares, inside, strict=True))
    return _percent(shares), str(met)


def _print(cells: Sequence[str], *, head: bool = True) -> None:
    if head:
        print()
    print(f"| {' | '.join(cells)} |")
    if head:
        print("|" + " --- |" * len(cells))


def _percent(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:+.0f}" for share in shares)


def _ratios(results: Results, world: World, row: str, figure: str) -> list[float]:
    """By corruption, the mean of a row over the mean of the oracles."""
    names = [f"{figure}, {each}" for each in world.corruptions]
    return [_mean(results, world, row, name) / _mean(results, world, "oracle", name) for name in names]


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
            cells.append(_interval([factor * value for value in values], digits))
    return cells


def _besides(results: Results, world: World, row: str) -> list[str]:
    """What the encoder holds, what an attacker brings back, how far from oracles, and what it cost."""
    apart = _mean(results, world, "oracle", "distance")
    figures = (("probe", 1, 3), ("relearned", 1000, 1), ("fresh decoder", 1000, 1), ("distance", 1 / apart, 2))
    cells = [
        _interval([factor * value for value in _values(results, world, row, name)], digits)
        for name, factor, digits in figures
    ]
    trained = row in {"original", "oracle"}
    return [*cells, "" if trained else f"{100 * _mean(results, world, row, 'cost'):.1f} %"]


def _interval(values: Sequence[float], digits: int) -> str:
    """Mean with a 95 % t interval, where there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


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
