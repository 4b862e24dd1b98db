"""Tables, targets and plots of the benchmark of image-to-image models."""

# pyright: reportUnknownMemberType=false

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from scipy import stats

from _i2i_worlds import World
from _results import Results

BESIDES = ("probe", "relearned", "fresh decoder", "distance", "cost")


def report(results: Results, world: World, rows: Sequence[str]) -> None:
    """Means with 95 % t intervals over seeds, as Markdown, and what the targets come to."""
    print(f"\n## {world.name}: {world.about}; {world.seeds} originals, {len(_of(results, world, 'oracle'))} oracles")
    names = ("original", "oracle", *rows)
    for what, digits in (("error", 1), ("FID", 2)):
        print(f"\n| {what}: forget, retain | " + " | ".join(world.corruptions) + " |")
        print("|" + " --- |" * (len(world.corruptions) + 1))
        for row in names:
            cells = [_pair(results, world, row, what, each, digits) for each in world.corruptions]
            print(f"| {row} | " + " | ".join(cells) + " |")
    print("\n| | " + " | ".join(BESIDES) + " |\n|" + " --- |" * (len(BESIDES) + 1))
    unit = statistics.mean(_values(results, world, "oracle", "distance"))
    for row in names:
        print(f"| {row} | " + " | ".join(_beside(results, world, row, name, unit) for name in BESIDES) + " |")
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
        axes.set_xlabel(title)
    figure.axes[0].set_ylabel(f"error, {name}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    figure.savefig(results.figure, metadata={"Date": None})


def _row_of_alpha(world: World, weight: float) -> str:
    return "paper, retain" if weight == world.remap["forget_weight"] else f"alpha {weight:g}"


def _targets(results: Results, world: World, rows: Sequence[str]) -> None:
    """What is asked of `paper` and of `oracle`, corruption by corruption: the worst and how many are met."""
    heads = ["", "forget FID / original's", "retain FID, change from original", "forget error beside oracles'", "met"]
    heads += ["forget FID", "met", "retain error", "met", "retain FID", "met", "probe above the highest oracle"]
    print("\n| " + " | ".join(heads) + " |")
    print("|" + " --- |" * 12)
    for row in ("original", *rows):
        doubled = _ratios(results, world, row, "original", "forget FID")
        moved = _ratios(results, world, row, "original", "retain FID")
        cells = [_list(doubled, 1), _list([each - 1 for each in moved], 100)]
        for name, least in (("forget error", 0.1), ("forget FID", 0.1), ("retain error", 0.05), ("retain FID", 0.05)):
            shares = [ratio - 1 for ratio in _ratios(results, world, row, "oracle", name)]
            inside = [_inside(results, world, row, f"{name}, {each}") for each in world.corruptions]
            met = sum(abs(share) <= least or (own and least == 0.1) for share, own in zip(shares, inside, strict=True))
            cells += [_list(shares, 100), str(met)]
        over = statistics.mean(_values(results, world, row, "probe")) - max(_values(results, world, "oracle", "probe"))
        print(f"| {row} | " + " | ".join([*cells, f"{over:+.3f}"]) + " |")


def _list(values: Sequence[float], factor: float) -> str:
    return ", ".join(f"{factor * value:.1f}" if factor == 1 else f"{factor * value:+.0f}" for value in values)


def _ratios(results: Results, world: World, row: str, beside: str, figure: str) -> list[float]:
    """By corruption, the mean of a row over the mean of the original or of the oracles."""
    names = [f"{figure}, {each}" for each in world.corruptions]
    return [_mean(results, world, row, name) / _mean(results, world, beside, name) for name in names]


def _inside(results: Results, world: World, row: str, figure: str) -> bool:
    """Whether the mean of a row lies between the lowest and the highest oracle."""
    oracles = _values(results, world, "oracle", figure)
    return min(oracles) <= _mean(results, world, row, figure) <= max(oracles)


def _pair(results: Results, world: World, row: str, what: str, corruption: str, digits: int) -> str:
    factor = 1000 if what == "error" else 1
    sets = (_values(results, world, row, f"{on} {what}, {corruption}") for on in ("forget", "retain"))
    return ", ".join(_interval([factor * value for value in each], digits) for each in sets)


def _beside(results: Results, world: World, row: str, name: str, unit: float) -> str:
    if name == "cost" and row in {"original", "oracle"}:
        return ""
    values = _values(results, world, row, name)
    if name == "distance":
        return _interval([value / unit for value in values], 2)
    if name == "cost":
        return f"{100 * statistics.mean(values):.1f} %"
    return _interval([value if name == "probe" else 1000 * value for value in values], 3 if name == "probe" else 1)


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
    if row == "oracle":
        return [results.cells[f"oracle {number}"] for number in range(world.oracles)]
    return [results.cells[f"{seed}: {row}"] for seed in range(world.seeds)]
