"""64 shadow models trained as one (torch.func) beside the same 64 one by one, on scikit-learn's digits.

Both ways run in turn in this one process, on one thread, on the same subsets and seeds; which goes first alternates.
The accuracies on held-out digits must be the same model by model, and the ratio of wall times is the claim. What the
short trial of `auto` would have chosen stands beside it. Run with `make bench BENCH=shadow_fleet`.
"""

import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

from _results import Results, draw_ratios, interval, size_from_arguments
from expunge import Classification, Execution, Optimizer, Schedule, Supervised
from expunge.audit.choosing import FleetSettings, choose
from expunge.audit.executors import TrainingJob
from expunge.audit.fleet import Fleet
from expunge.networks import mlp

SHADOWS = 64
REPETITIONS = 5
TRAINING = 1400
EPOCHS = {"quick": 4, "full": 20}
WAYS = ("in-process", "batched")


def cnn() -> nn.Module:
    """A small CNN; GroupNorm in the place of BatchNorm, whose statistics would belong to one model each."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


NETWORKS = {"MLP": partial(mlp, 64, 10), "small CNN": cnn}


def main() -> None:
    """Time both ways for each network, several times."""
    size = size_from_arguments(__doc__ or "")
    epochs = EPOCHS[size.name]
    results = Results("shadow_fleet", size, {"shadows": SHADOWS, "epochs": epochs, "batch_size": 64, "threads": 1})
    cells = {
        name: [
            results.cell(f"{name}, repetition {number}", lambda name=name, number=number: both(name, epochs, number))
            for number in range(REPETITIONS)
        ]
        for name in NETWORKS
    }
    report(results, cells)


def both(name: str, epochs: int, number: int) -> dict[str, Any]:
    """One fleet in each way."""
    images, labels = digits()
    inputs = images.flatten(1) if name == "MLP" else images
    train, test = TensorDataset(inputs[:TRAINING], labels[:TRAINING]), (inputs[TRAINING:], labels[TRAINING:])
    recipe = Supervised(
        cast(Any, NETWORKS[name]),
        Classification(10),
        epochs=epochs,
        batch_size=64,
        optimizer=Optimizer(3e-3, schedule=Schedule.ONE_CYCLE),
        execution=Execution(threads=1, progress=False),
    )
    jobs = [TrainingJob(half(train, number, shadow), 1000 * number + shadow) for shadow in range(SHADOWS)]
    cell: dict[str, Any] = {"accuracies": {}}
    for way in WAYS:  # imports and what torch builds for the first step are no part of either
        Fleet(replace(recipe, epochs=1), jobs[:2]).train(FleetSettings(way, cache=False), progress=False)
    for way in WAYS if number % 2 else WAYS[::-1]:
        started = time.perf_counter()
        models = Fleet(recipe, jobs).train(FleetSettings(way, cache=False), progress=False).models
        cell[f"{way}, seconds"] = time.perf_counter() - started
        cell["accuracies"][way] = [accuracy(model, *test) for model in models]
    choice = choose(recipe, jobs, FleetSettings(workers=1))[1]
    cell["chosen by a trial"], cell["trial, expected seconds"] = choice.executor, dict(choice.expected_seconds)
    one, other = (cell["accuracies"][way] for way in WAYS)
    cell["largest difference in accuracy"] = max(abs(a - b) for a, b in zip(one, other, strict=True))
    cell["p of equal distributions"] = float(cast(Any, stats.ks_2samp(one, other)).pvalue)
    cell["times as fast"] = cell["in-process, seconds"] / cell["batched, seconds"]
    return cell


def digits() -> tuple[Tensor, Tensor]:
    """All digits in a fixed random order: (examples, 1, 8, 8) in [0, 1], and labels."""
    bunch = cast(Any, load_digits())
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(bunch.images).float()[order, None] / 16, torch.as_tensor(bunch.target)[order]


def half(data: TensorDataset, number: int, shadow: int) -> Subset[Any]:
    """A random half, another for each shadow."""
    generator = torch.Generator().manual_seed(1000 * number + shadow)
    return Subset(data, torch.randperm(len(data), generator=generator)[: len(data) // 2].tolist())


@torch.inference_mode()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of held-out digits that a model gets right."""
    device = next(model.parameters()).device
    return float((model(inputs.to(device)).argmax(1).cpu() == labels).double().mean())


def report(results: Results, cells: dict[str, list[dict[str, Any]]]) -> None:
    """Print times, ratios with intervals and accuracies, and draw the ratios."""
    print("| | one by one, s | as one, s | times as fast (95 % interval) | accuracy, one by one | as one | trial |")
    print("| --- " * 7 + "|")
    for name, repetitions in cells.items():
        seconds = [statistics.mean(cell[f"{way}, seconds"] for cell in repetitions) for way in WAYS]
        accuracies = [
            statistics.mean(value for cell in repetitions for value in cell["accuracies"][way]) for way in WAYS
        ]
        chosen = ", ".join(dict.fromkeys(cell["chosen by a trial"] for cell in repetitions))
        ratio = interval([cell["times as fast"] for cell in repetitions], digits=2)
        print(
            f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {ratio} |"
            f" {accuracies[0]:.4f} | {accuracies[1]:.4f} | {chosen} |"
        )
    ratios = {name: [cell["times as fast"] for cell in repetitions] for name, repetitions in cells.items()}
    draw_ratios(results, ratios, "times as fast as one by one, each repetition")


if __name__ == "__main__":
    main()
