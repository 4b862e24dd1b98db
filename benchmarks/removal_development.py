"""Methods of our own beside controls and the field's, on the development split, at 10 and 20 % of a retrain.

Defaults are chosen here; whether they hold on other classes and seeds is for `classifiers` to say. Run with
`make bench BENCH=removal_development`.
"""

import time
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from _development import EXECUTION, ORACLE_SEEDS, REQUESTS, SIZE, pictures, problem, recipe, trained
from _results import Results, size_from_arguments
from expunge import (
    EUK,
    MSG,
    Algorithm,
    AuditSettings,
    Extrapolate,
    FineTune,
    Method,
    NoiseAndDistil,
    Problem,
    References,
    Relearning,
    Retrain,
    Run,
    Schedule,
    SelectiveReset,
    Stage,
    split,
    unlearn,
)
from expunge.audit import Evidence

BUDGETS = (0.1, 0.2)
MEASURES = {
    "holdout accuracy, kept": ("accuracy, holdout", 0.1),
    "divergence (nats)": ("divergence from the oracles, forget", 0.03),
    "linear probe": ("linear probe, forget", 0.2),
    "relearning": ("relearning, mean, forget", 0.2),
    "head refitted": ("relearning, head refitted, mean, forget", 0.2),
}
"""By the name that is shown: the measure, and up to what difference a model counts as equivalent to an oracle."""

SETTINGS = AuditSettings(
    Relearning(steps=(0, 10, 20), batch_size=64, measured_on=250), examples=1000, bits=(), neighbours=0
)


@dataclass(frozen=True)
class RandomReset(SelectiveReset):
    """The control: as many weights, anyhow chosen, at the cost of having chosen them."""

    def specificity(self, problem: Problem, run: Run) -> dict[str, Tensor]:
        """Random numbers."""
        super().specificity(problem, run)
        weights = problem.model.named_parameters()
        return {
            name: torch.rand(weight.shape, generator=run.generator("control", name))
            for name, weight in weights
            if weight.ndim > 1
        }


@dataclass(frozen=True)
class _Scratch(Retrain):
    """Training from scratch by the recipe, for a share of its passes."""

    budget: float = 0.1

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a new model."""
        assert problem.retain is not None
        return recipe(self.budget * SIZE.epochs).fit(problem.retain, run)


def methods(budget: float) -> dict[str, Method]:
    """Every method within a budget; those of others at two rates each."""
    passes = budget * SIZE.epochs
    stages = {rate: Stage(rate, epochs=passes, schedule=Schedule.ONE_CYCLE) for rate in (0.05, 0.1)}
    shares = (0.1, 0.2, 0.3, 0.5)
    return {
        **{f"SelectiveReset, share {share}": SelectiveReset(budget=budget, share=share) for share in shares},
        **{
            f"SelectiveReset, share {share}, labels alone": SelectiveReset(
                budget=budget, share=share, distilled=0, measured_on=128, learning_rate=0.05
            )
            for share in (0.1, 0.2)
        },
        "random reset, share 0.3": RandomReset(budget=budget, share=0.3),
        "Extrapolate": Extrapolate(budget=budget, batch_size=64),
        "Extrapolate, SGD": Extrapolate(budget=budget, batch_size=64, algorithm=Algorithm.SGD, learning_rate=0.1),
        **{f"FineTune, {rate}": FineTune((stage,), batch_size=64) for rate, stage in stages.items()},
        **{f"EUK, {rate}": EUK(learning_rate=rate, epochs=passes, batch_size=64) for rate in (0.01, 0.05)},
        **{f"MSG, {rate}": MSG(learning_rate=rate, epochs=passes) for rate in (0.01, 0.05)},
        **{
            f"NoiseAndDistil, {rate}": NoiseAndDistil(learning_rate=rate, epochs=passes - 1 / 3, batch_size=64)
            for rate in (1e-3, 3e-3)
        },
    }


def main() -> None:
    """Fill the table, print it, draw it."""
    size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    settings = {
        "recipe": repr(recipe().optimizer),
        "requests": REQUESTS,
        "oracles": ORACLE_SEEDS,
        "audit": repr(SETTINGS),
    }
    results = Results("removal_development", replace(SIZE, name="quick"), settings)
    results.cell("retrain", retrain)
    for (number, (seed, forget)), budget in product(enumerate(REQUESTS), BUDGETS):
        for name, method in methods(budget).items():
            results.cell(key(budget, number, name), partial(cell, seed, forget, method))
        results.cell(key(budget, number, "from scratch"), partial(cell, seed, forget, _Scratch(budget=budget)))
    table(results)
    draw(results)


def key(budget: float, number: int, name: str) -> str:
    """Name of a cell."""
    return f"{budget:.0%} · request {number} · {name}"


def retrain() -> dict:
    """Processor time of one retrain: on a busy machine that of the clock says nothing."""
    begun = time.process_time()
    recipe(1.0)(split(pictures()[0], classes=[0]).retain, 9)
    return {"cpu seconds": SIZE.epochs * (time.process_time() - begun)}


def cell(seed: int, forget: tuple[int, ...], method: Method) -> dict:
    """What a method comes to."""
    begun = time.process_time()
    unlearned = unlearn(problem(seed, forget), method, seed=seed, execution=EXECUTION)
    seconds = time.process_time() - begun
    found = figures(references(seed, forget).compare(unlearned))
    found["measured"] = {name: value for phase in unlearned.record.phases for name, value in phase.measured.items()}
    return found | {"cpu seconds": seconds, "settings": unlearned.record.settings}


@cache
def references(seed: int, forget: tuple[int, ...]) -> References:
    """The original beside three oracles."""
    oracles = [trained(forget, oracle).model for oracle in ORACLE_SEEDS]
    return References.prepare(problem(seed, forget), oracles, settings=SETTINGS, execution=EXECUTION)


def figures(evidence: Evidence) -> dict:
    """By measure, of the unlearned model, the original and each oracle; and how far from the oracles all is."""
    named = {f"{measure.name}, {measure.on}": measure for measure in evidence.measures}
    found: dict = {"verdict": evidence.verdict.value}
    gaps = []
    for name, (of, equivalent) in MEASURES.items():
        measure = named[of]
        found[name] = measure.unlearned.value
        found[f"{name}, others"] = {"original": measure.original.value if measure.original else None,
                                    "oracles": measure.oracles}  # fmt: skip
        gaps.append(abs(measure.unlearned.value - float(np.mean(measure.oracles))) / equivalent)
    return found | {"gap": float(np.mean(gaps))}


def table(results: Results) -> None:
    """Print means over requests; the oracles' and the original's first."""
    first = [results.cells[key(BUDGETS[0], number, "from scratch")] for number in range(len(REQUESTS))]
    print("| budget | method | " + " | ".join((*MEASURES, "gap", "processor time (% of a retrain)")) + " |")
    print("| --- " * (len(MEASURES) + 4) + "|")
    for name, of in (("original", lambda each: [each["original"]]), ("oracles", lambda each: each["oracles"])):
        shown = [np.mean([of(cell[f"{measure}, others"]) for cell in first]) for measure in MEASURES]
        print(f"| – | {name} | " + " | ".join(f"{value:.3f}" for value in shown) + " | – | – |")
    for budget in BUDGETS:
        for name in (*methods(budget), "from scratch"):
            cells = [results.cells[key(budget, number, name)] for number in range(len(REQUESTS))]
            shown = [f"{np.mean([cell[measure] for cell in cells]):.3f}" for measure in (*MEASURES, "gap")]
            print(f"| {budget:.0%} | {name} | {' | '.join(shown)} | {100 * cost(results, cells):.0f} |")


def cost(results: Results, cells: list[dict]) -> float:
    """Processor time as a share of a retrain's."""
    return float(np.mean([cell["cpu seconds"] for cell in cells])) / results.cells["retrain"]["cpu seconds"]


def draw(results: Results) -> None:
    """The gap of each method at each budget, a point a request."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    panel = figure.subplots()
    names = [*methods(BUDGETS[0]), "from scratch"]
    for colour, budget in enumerate(BUDGETS):
        for number in range(len(REQUESTS)):
            gaps = [results.cells[key(budget, number, name)]["gap"] for name in names]
            places = [place + 0.15 * (2 * colour - 1) for place in range(len(names))]
            panel.plot(gaps, places, "os"[number], color=f"C{colour}", alpha=0.8,
                       label=f"{budget:.0%} of a retrain, forget {REQUESTS[number][1]}")  # fmt: skip
    panel.axvline(1, color="grey", linewidth=1)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlabel("mean distance from the oracles; 1: as far as counts as equivalent")
    panel.legend(fontsize=7)
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
