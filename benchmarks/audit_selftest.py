"""Does the audit see what is there, and nothing else?

Models whose truth is known are audited over twenty seeds, on digits and on a part of MNIST. Run with
`make bench BENCH=audit_selftest`.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import TensorDataset

from _results import Results, size_from_arguments
from expunge import Classification, Execution, Supervised
from expunge.audit.self_test import Subject, self_test
from expunge.cli.self_test import digits, self_test_json
from expunge.networks import mlp

SEEDS = {"quick": 20, "full": 100}


@dataclass(frozen=True)
class Part:
    """How much of MNIST is used."""

    train: int = 3000
    holdout: int = 1500


def main() -> None:
    """Fill the table, print it, draw it."""
    size = size_from_arguments(__doc__ or "")
    seeds = SEEDS[size.name]
    torch.set_num_threads(1)
    results = Results("audit_selftest", size, {"seeds": seeds, "mnist": str(Part())})
    cells = {
        "digits": results.cell("digits", lambda: {"models": self_test_json(self_test(digits(), seeds))}),
        "MNIST": results.cell("MNIST", lambda: {"models": self_test_json(self_test(mnist(Part()), seeds))}),
    }
    print("| data | model | should be | found different | 95 % interval | verdicts |\n" + "| --- " * 6 + "|")
    for data, cell in cells.items():
        for each in cell["models"]:
            verdicts = ", ".join(f"{name} {count}" for name, count in each["verdicts"].items())
            print(
                f"| {data} | {each['model']} | {'passed' if each['retrained'] else 'caught'} | {each['found']} of "
                f"{each['of']} | {each['interval'][0]:.2f} to {each['interval'][1]:.2f} | {verdicts} |"
            )
    draw(results, cells)


def mnist(part: Part) -> Subject:
    """A part of MNIST as feature vectors in [0, 1], and an MLP."""
    root = os.environ.get("EXPUNGE_DATA_DIR")
    if not root or not (Path(root) / "mnist.npz").exists():
        raise SystemExit("set EXPUNGE_DATA_DIR to a folder that holds mnist.npz")
    with np.load(Path(root) / "mnist.npz", allow_pickle=False) as arrays:
        train, holdout = (
            TensorDataset(
                torch.from_numpy(arrays[f"x_{name}"][:count]).flatten(1).float() / 255,
                torch.from_numpy(arrays[f"y_{name}"][:count]).long(),
            )
            for name, count in (("train", part.train), ("test", part.holdout))
        )
    recipe = Supervised(
        partial(mlp, 784, 10), Classification(10), epochs=8, batch_size=64, execution=Execution(progress=False)
    )
    return Subject(train, holdout, recipe)


def draw(results: Results, cells: dict[str, dict]) -> None:
    """A row a model: how often a difference was found, with its interval."""
    rows = [(data, each) for data, cell in cells.items() for each in cell["models"]]
    figure = Figure(figsize=(8, 0.3 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for row, (_, each) in enumerate(rows):
        colour = "C0" if each["retrained"] else "C3"
        axes.hlines(row, *each["interval"], color=colour)
        axes.plot(each["found"] / each["of"], row, "o", color=colour)
    axes.set_yticks(range(len(rows)), [f"{data}: {each['model']}" for data, each in rows])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("how often a difference from retraining is found (red should be 1, blue 0)")
    figure.savefig(results.figure)


if __name__ == "__main__":
    main()
