"""What gradient reversal costs as the forget set grows, and as the training set does.

Random texts, a GPT-2 of 0.1 M parameters, three epochs with a log of all layers. One of the two sets grows and the
other stays; each time the model is to forget other examples, up to half a nat above their loss. Seconds are those of
the processor, because a busy machine would blur those of the clock. Run with `make bench BENCH=reversal_cost`.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from _results import Results, size_from_arguments
from _reversal import EXECUTION, SHAPES, log_folder
from expunge import Algorithm, CausalLM, GradientReversal, Optimizer, Problem, Run, Supervised, unlearn
from expunge.data import subset
from expunge.states import GradientLog, log_training
from expunge.states.gradient_store import INDEX_FILE, Located, RecordStore
from expunge.training import over_batches

WORDS, CONTEXT, HOLDOUT = 200, 32, 32
PLAN = {
    "quick": {"training": (100, 200, 400, 800), "forget": (5, 10, 20, 40), "repeats": 5},
    "full": {"training": (1000, 2000, 4000, 8000), "forget": (10, 20, 40, 80), "repeats": 10},
}
FIXED = {"quick": {"training": 400, "forget": 10}, "full": {"training": 4000, "forget": 20}}
PARTS = ("open the log", "reverse", "repair", "checks and digests")
MEASURED = (*PARTS, "all", "bytes of entries", "bytes of the index")


def main() -> None:
    """Fill the cells, print the slopes, draw."""
    size = size_from_arguments(__doc__ or "")
    torch.set_num_threads(1)
    plan, fixed = PLAN[size.name], FIXED[size.name]
    results = Results("reversal_cost", size, {"plan": plan, "fixed": fixed, "method": repr(GradientReversal())})
    pairs = sorted(
        {(each, fixed["forget"]) for each in plan["training"]} | {(fixed["training"], each) for each in plan["forget"]}
    )
    for training in sorted({each for each, _ in pairs}):
        with log_folder() as folder:
            trained = Trained(training, folder)
            for forget in (each for total, each in pairs if total == training):
                for repeat in range(plan["repeats"]):
                    key = f"training {training} · forget {forget} · repeat {repeat}"
                    results.cell(key, partial(warm_cost, trained, forget, repeat))
    report(results, plan, fixed)


class Trained:
    """A model with its log, trained where a cell needs it."""

    def __init__(self, examples: int, folder: Path) -> None:
        self.folder, self.task = folder, CausalLM()
        generator = torch.Generator().manual_seed(examples)
        rows = torch.randint(1, WORDS, (examples + HOLDOUT, CONTEXT - 8), generator=generator).tolist()
        texts = [{"input_ids": row} for row in rows]
        self.training, self.holdout = texts[:examples], texts[examples:]

    @cached_property
    def model(self) -> nn.Module:
        """Trained for three epochs; the log lies in the folder then."""
        recipe = Supervised(
            partial(SHAPES["0.1 M"].build, WORDS, CONTEXT),
            self.task,
            epochs=3,
            batch_size=8,
            optimizer=Optimizer(3e-3, Algorithm.ADAMW),
            execution=EXECUTION,
        )
        model, _ = log_training(recipe, self.training, Run(self.task, 0, EXECUTION), self.folder)
        return model

    @cached_property
    def warm(self) -> bool:
        """What is loaded and warmed up once is no part of a cell."""
        return bool(cost(self, 4, -1))


def warm_cost(trained: Trained, forget: int, repeat: int) -> dict[str, Any]:
    """`cost`, not for the first time."""
    assert trained.warm
    return cost(trained, forget, repeat)


def cost(trained: Trained, forget: int, repeat: int) -> dict[str, Any]:
    """Processor seconds, by part, and bytes read of the log."""
    model, task = trained.model, trained.task
    order = torch.randperm(len(trained.training), generator=torch.Generator().manual_seed(repeat + 1))
    asked, kept = (subset(trained.training, each) for each in (order[:forget], order[forget:]))
    losses = torch.cat(over_batches(Run(task, execution=EXECUTION), model, asked, task.losses))
    method = GradientReversal(target_loss=float(losses.mean()) + 0.5)
    with counted() as bytes_read, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        started = time.process_time()
        log = GradientLog.open(trained.folder)
        opened = time.process_time() - started
        problem = Problem(model, task, asked, kept, trained.holdout, state=log)
        with timed("_reverse") as reverse, timed("_repair") as repair:
            result = unlearn(problem, method, seed=0, execution=EXECUTION)
        whole = time.process_time() - started
    return {
        "open the log": opened,
        "reverse": reverse(),
        "repair": repair(),
        "checks and digests": whole - opened - reverse() - repair(),
        "all": whole,
        "bytes of entries": bytes_read(),
        "bytes of the index": (trained.folder / INDEX_FILE).stat().st_size,
        "steps of the search": result.record.phases[0].steps,
        "steps of the repair": sum(each.steps for each in result.record.phases[1:]),
    }


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Bytes of entries that are read of any log within the block."""
    found: list[int] = []
    read = RecordStore.read

    def counting(store: RecordStore, record: Located) -> bytearray:
        found.append(record.length)
        return read(store, record)

    with mock.patch.object(RecordStore, "read", counting):
        yield lambda: sum(found)


@contextmanager
def timed(name: str) -> Iterator[Callable[[], float]]:
    """Processor seconds that a part of the method takes within the block."""
    found: list[float] = []
    part = getattr(GradientReversal, name)

    def timing(*arguments: Any) -> Any:
        started = time.process_time()
        try:
            return part(*arguments)
        finally:
            found.append(time.process_time() - started)

    with mock.patch.object(GradientReversal, name, timing):
        yield lambda: sum(found)


def report(results: Results, plan: dict[str, Any], fixed: dict[str, int]) -> None:
    """Print means and slopes, and draw them."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, grown in zip(panels, ("forget", "training"), strict=True):
        sizes = plan[grown]
        found = {name: series(results, plan, fixed, grown, name) for name in MEASURED}
        print(f"\n| {grown} examples | {' | '.join(map(str, sizes))} | more for each example | exponent |")
        print("| --- " * (len(sizes) + 3) + "|")
        for name, values in found.items():
            digits, scale, unit = (0, 1, "") if "bytes" in name else (3, 1000, " ms")
            means = " | ".join(f"{statistics.mean(each):,.{digits}f}" for each in values)
            line, half = slope(sizes, values)
            power, width = slope(np.log(sizes), [list(np.log(np.maximum(each, 1e-9))) for each in values])
            more = f"{scale * line:,.2f} ± {scale * half:,.2f}{unit}"
            print(f"| {name} | {means} | {more} | {power:.2f} ± {width:.2f} |")
        bottom = np.zeros(len(sizes))
        for name in PARTS:
            heights = np.array([statistics.mean(each) for each in found[name]])
            panel.bar([str(each) for each in sizes], heights, bottom=bottom, label=name)
            bottom += heights
        other = "training" if grown == "forget" else "forget"
        panel.set_xlabel(f"{grown} examples ({other}: {fixed[other]})")
    panels[0].set_ylabel("processor seconds")
    panels[0].legend(fontsize=8)
    figure.savefig(results.figure)


def series(results: Results, plan: dict[str, Any], fixed: dict[str, int], grown: str, name: str) -> list[list[float]]:
    """A figure's repeats at each size."""
    found: list[list[float]] = []
    for each in plan[grown]:
        sizes = fixed | {grown: each}
        prefix = f"training {sizes['training']} · forget {sizes['forget']} · repeat "
        found.append([results.cells[f"{prefix}{repeat}"][name] for repeat in range(plan["repeats"])])
    return found


def slope(sizes: Sequence[float], values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Slope of a line through all repeats, and half its 95 % interval."""
    x = [size for size, each in zip(sizes, values, strict=True) for _ in each]
    fit = stats.linregress(x, [value for each in values for value in each])
    return float(fit.slope), float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)


if __name__ == "__main__":
    main()
