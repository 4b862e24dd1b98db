"""UNSIR on CIFAR-10 beside oracles and its retain-only control: 1, 2, 4 and 7 forget classes, three seeds.

Run with `make bench BENCH=unsir_cifar10`.
"""

from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from _cifar10 import Size, recipe
from _results import Results, size_from_arguments
from _unsir import control, run
from expunge import UNSIR

FORGET = ((0,), (0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6))
METHODS = ("UNSIR", "retain-only control", "UNSIR, paper")
SHOWN = {
    "forget": "accuracy, forget",
    "holdout, forgotten": "accuracy, holdout, forgotten kind",
    "retain": "accuracy, retain",
    "holdout, kept": "accuracy, holdout",
    "divergence from oracles (nats)": "divergence from the oracles, forget",
    "relearning": "relearning, mean, forget",
    "relearning, head refitted": "relearning, head refitted, mean, forget",
    "Tug-of-War": "Tug-of-War, all sets",
}
COST = ("share of a retrain, seconds", "share of a retrain, examples")


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    method = default(size)
    results = Results("unsir_cifar10", size, {"method": repr(method), "recipe": repr(recipe(size).optimizer)})
    done = list(product(range(size.seeds), FORGET))
    for seed, forget in done:
        fill(results, size, method, seed, forget)
    table(results, done)
    draw(results, done)


def default(size: Size) -> UNSIR:
    """The default settings; the quick size has too few images for 500 retained ones a class."""
    return UNSIR(retain_per_class=250) if size.name == "quick" else UNSIR()


def fill(results: Results, size: Size, method: UNSIR, seed: int, forget: tuple[int, ...]) -> None:
    """All methods for one seed and forget set."""
    ours = results.cell(key("UNSIR", seed, forget), lambda: run(size, forget, seed, method)[1])
    impair, repair = ours["steps"][-2:]
    results.cell(
        key("retain-only control", seed, forget),
        lambda: run(size, forget, seed, control(method, impair, repair))[1],
    )
    if seed == 0 or size.name == "full":  # the published settings cost more than all else together
        paper = UNSIR.preset("paper", retain_per_class=min(1000, size.train_per_class))
        results.cell(key("UNSIR, paper", seed, forget), lambda: run(size, forget, seed, paper)[1])


def key(method: str, seed: int, forget: tuple[int, ...]) -> str:
    """Name of a cell."""
    return f"forget {forget} · {method} · seed {seed}"


def seeds_of(done: list[tuple[int, tuple[int, ...]]], forget: tuple[int, ...]) -> list[int]:
    """Seeds for which a forget set is complete."""
    return [seed for seed, other in done if other == forget]


def table(results: Results, done: list[tuple[int, tuple[int, ...]]]) -> None:
    """Print mean and, in brackets, range over seeds; oracles first."""
    print("| forget | model | " + " | ".join((*SHOWN, "cost: seconds, examples (% of a retrain)", "verdicts")) + " |")
    print("| --- " * (len(SHOWN) + 4) + "|")
    for forget in FORGET:
        seeds = seeds_of(done, forget)
        if not seeds:
            continue
        for model in ("original", "oracles", *METHODS):
            cells = cells_of(results, model, seeds, forget)
            shown = [
                spread([value for cell in cells for value in figure(cell, model, name)]) for name in SHOWN.values()
            ]
            cost = verdicts = ""
            if model in METHODS:
                cost = ", ".join(f"{100 * np.mean([cell[name] for cell in cells]):.1f}" for name in COST)
                verdicts = ", ".join(sorted({cell["verdict"] for cell in cells}))
            print(f"| {len(forget)} | {model} | {' | '.join(shown)} | {cost} | {verdicts} |")


def cells_of(results: Results, model: str, seeds: list[int], forget: tuple[int, ...]) -> list[dict]:
    """The cells that hold a model's figures; those of the original and the oracles stand in UNSIR's."""
    keys = [key(model if model in METHODS else "UNSIR", seed, forget) for seed in seeds]
    return [results.cells[name] for name in keys if name in results.cells]


def figure(cell: dict, model: str, name: str) -> list[float]:
    """One figure of a method, of the original, or of each oracle."""
    if model == "original":
        return [cell[f"{name}, others"]["original"]]
    return cell[f"{name}, others"]["oracles"] if model == "oracles" else [cell[name]]


def spread(values: list[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def draw(results: Results, done: list[tuple[int, tuple[int, ...]]]) -> None:
    """Accuracies beside the oracles' range, and relearning curves of every seed and oracle."""
    figure_ = Figure(figsize=(15, 3.2 * len(FORGET)), layout="constrained")
    axes = figure_.subplots(len(FORGET), 3, squeeze=False)
    for row, forget in enumerate(FORGET):
        seeds = seeds_of(done, forget)
        accuracies(axes[row, 0], results, seeds, forget)
        for column, curve in ((1, "relearning"), (2, "relearning, head refitted")):
            relearning(axes[row, column], results, seeds, forget, curve)
    axes[0, 0].legend(fontsize=7)
    axes[0, 1].legend(fontsize=7)
    figure_.savefig(results.figure)


def accuracies(panel: Axes, results: Results, seeds: list[int], forget: tuple[int, ...]) -> None:
    """Accuracy on each set: a point a seed."""
    names = [name for name in SHOWN if name in ("forget", "holdout, forgotten", "retain", "holdout, kept")]
    for position, name in enumerate(names):
        for number, model in enumerate(("oracles", "original", *METHODS)):
            cells = cells_of(results, model, seeds, forget)
            found = [value for cell in cells for value in figure(cell, model, SHOWN[name])]
            panel.plot([position + 0.14 * (number - 2)] * len(found), found, "_osv^"[number], color=f"C{number}",
                       label=model if position == 0 else None, alpha=0.7)  # fmt: skip
    panel.set_xticks(range(len(names)), names, fontsize=8)
    panel.set_ylabel("accuracy")
    panel.set_title(f"{len(forget)} forget class{'es' if len(forget) > 1 else ''}", fontsize=9)


def relearning(panel: Axes, results: Results, seeds: list[int], forget: tuple[int, ...], curve: str) -> None:
    """Accuracy on forget examples against relearning steps."""
    for number, model in enumerate(("oracles", "original", *METHODS)):
        label: str | None = model
        for found in cells_of(results, model, seeds, forget):
            cell = found[f"{curve}, curve"]
            lines = cell["oracles"] if model == "oracles" else [
                cell["original" if model == "original" else "unlearned"]]  # fmt: skip
            for line in lines:
                panel.plot(cell["steps"], line, color=f"C{number}", alpha=0.6, label=label)
                label = None
    panel.set_xlabel("steps of relearning")
    panel.set_ylabel("forget accuracy")
    panel.set_ylim(-0.02, 1.02)
    panel.set_title(curve, fontsize=9)


if __name__ == "__main__":
    main()
