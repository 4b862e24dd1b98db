"""Does UNSIR's learned noise matter?

Learned noise against random noise, a zero image and no noise at all, with the same retained images, learning rates and
numbers of steps; one and two forget classes; three learning rates. Run with `make bench BENCH=unsir_ablation`.
"""

from dataclasses import replace
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from _results import Results, size_from_arguments
from _unsir import control, run
from expunge import UNSIR, Noise, Schedule

RATES = ((0.02, 0.01), (0.002, 0.001), (0.0001, 0.0001))
FORGET = ((0,), (0, 1))
KINDS = (*(noise.value for noise in Noise), "none")
SHOWN = {
    "forget": "accuracy, forget",
    "holdout, kept classes": "accuracy, holdout",
    "divergence from oracles": "divergence from the oracles, forget",
    "relearning": "relearning, mean, forget",
    "relearning, head refitted": "relearning, head refitted, mean, forget",
}


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    base = UNSIR(
        batch_size=128,
        retain_per_class=500,
        noise_images=64,
        noise_repeats=16,
        repair_schedule=Schedule.CONSTANT,
    )
    seeds = range(1 if size.name == "quick" else size.seeds)
    results = Results("unsir_ablation", size, {"rates": RATES, "forget": FORGET, "base": repr(base)})
    for seed, forget, (impair, repair) in product(seeds, FORGET, RATES):
        method = replace(base, impair_learning_rate=impair, repair_learning_rate=repair)
        steps = (0, 0)
        for noise in KINDS:
            tried = control(method, *steps) if noise == "none" else replace(method, noise=Noise(noise))
            found = results.cell(
                key(forget, impair, noise, seed), lambda m=tried, f=forget, s=seed: run(size, f, s, m)[1]
            )
            steps = tuple(found["steps"][-2:])
    table(results, seeds)
    draw(results, seeds)


def key(forget: tuple[int, ...], impair: float, noise: str, seed: int) -> str:
    """Name of a cell."""
    return f"forget {forget} · impair {impair} · noise {noise} · seed {seed}"


def values(
    results: Results, forget: tuple[int, ...], impair: float, noise: str, seeds: range, name: str
) -> list[float]:
    """One figure over the seeds."""
    return [results.cells[key(forget, impair, noise, seed)][name] for seed in seeds]


def oracle_values(results: Results, forget: tuple[int, ...], seeds: range, name: str) -> list[float]:
    """The same figure of the oracles."""
    cells = [results.cells[key(forget, RATES[0][0], Noise.LEARNED, seed)] for seed in seeds]
    return [value for cell in cells for value in cell[f"{name}, others"]["oracles"]]


def table(results: Results, seeds: range) -> None:
    """Print means over seeds, a row a setting."""
    print("| forget | impair rate | noise | " + " | ".join(SHOWN) + " | verdicts |")
    print("| --- " * (len(SHOWN) + 4) + "|")
    for forget in FORGET:
        oracle = " | ".join(f"{np.mean(oracle_values(results, forget, seeds, name)):.3f}" for name in SHOWN.values())
        print(f"| {forget} | | oracles | {oracle} | |")
        for (impair, _), noise in product(RATES, KINDS):
            figures = " | ".join(
                f"{np.mean(values(results, forget, impair, noise, seeds, name)):.3f}" for name in SHOWN.values()
            )
            verdicts = ", ".join(sorted({results.cells[key(forget, impair, noise, seed)]["verdict"] for seed in seeds}))
            print(f"| {forget} | {impair} | {noise} | {figures} | {verdicts} |")


def draw(results: Results, seeds: range) -> None:
    """A panel a figure; the oracles' range is shaded."""
    figure = Figure(figsize=(3.2 * len(SHOWN), 3.4 * len(FORGET)), layout="constrained")
    axes = figure.subplots(len(FORGET), len(SHOWN), squeeze=False)
    for row, forget in enumerate(FORGET):
        for column, (title, name) in enumerate(SHOWN.items()):
            panel = axes[row, column]
            oracle = oracle_values(results, forget, seeds, name)
            panel.axhspan(min(oracle) - 0.003, max(oracle) + 0.003, color="0.8", label="oracles")
            for noise, marker in zip(KINDS, "osv^", strict=True):
                for position, (impair, _) in enumerate(RATES):
                    found = values(results, forget, impair, noise, seeds, name)
                    offset = (KINDS.index(noise) - 1.5) * 0.15
                    panel.plot([position + offset] * len(found), found, marker, color=f"C{KINDS.index(noise)}",
                               label=f"noise: {noise}" if position == 0 else None)  # fmt: skip
            panel.set_xticks(range(len(RATES)), [f"{impair:g}" for impair, _ in RATES])
            panel.set_xlabel("impair learning rate")
            panel.set_title(f"{title}\nforget {forget}", fontsize=9)
    axes[0, 0].legend(fontsize=7)
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
