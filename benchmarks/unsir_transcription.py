"""UNSIR in the library beside a plain transcription of the published algorithm, with the paper's settings.

Both run in turn, in this one process, from the same original: the accuracies must agree and the ratio of wall times is
the claim. The transcription does what public ports do: noise is kept as copies in a list of examples, a DataLoader puts
them together item by item, gradients of the weights are computed while noise is learned, and training accuracy is
computed on every batch. The notebook's faults (see `docs/papers.md`) are not transcribed. Run with
`make bench BENCH=unsir_transcription`.
"""

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from _cifar10 import SIZES, TASK, Size, accuracy, load, trained
from _results import Results, draw_ratios, interval, size_from_arguments
from expunge import UNSIR, Execution, Problem, split, unlearn

FORGET = (0, 1)
REPETITIONS = 3
SETS = ("forget", "retain", "test, kept")


def main() -> None:
    """Time both in turn, for several seeds."""
    size = size_from_arguments(__doc__ or "")
    method = UNSIR.preset("paper", retain_per_class=min(1000, size.train_per_class))
    if size.name == "quick":
        method = replace(method, noise_repeats=4)
    results = Results("unsir_transcription", size, {"method": repr(method), "forget": FORGET})
    cells = [results.cell(f"seed {seed}", lambda seed=seed: both(size, method, seed)) for seed in range(REPETITIONS)]
    report(results, cells)


def both(size: Size, method: UNSIR, seed: int) -> dict[str, Any]:
    """One run of each; which goes first alternates."""
    train, test = load(size)
    parts = split(train, classes=FORGET)
    original = trained(size, (), seed % SIZES[size.name].seeds).model
    problem = Problem(original, TASK, parts.forget, parts.retain, None, parts.classes)
    ways = {
        "transcription": lambda: transcribed(original, train, method, seed),
        "expunge": lambda: unlearn(problem, method, seed=seed, execution=Execution(progress=False)).model,
        "expunge, channels-last": lambda: (
            unlearn(problem, method, seed=seed, execution=Execution(progress=False, channels_last=True)).model
        ),
    }
    order = list(ways) if seed % 2 else list(reversed(ways))
    cell: dict[str, Any] = {}
    for name in order:
        started = time.perf_counter()
        model = ways[name]()
        cell[f"{name}, seconds"] = time.perf_counter() - started
        for where, data in zip(
            SETS, (subset(train, FORGET), without(train, FORGET), without(test, FORGET)), strict=True
        ):
            cell[f"{name}, accuracy, {where}"] = accuracy(model, data)
    return cell


def transcribed(original: nn.Module, train: TensorDataset, method: UNSIR, seed: int) -> nn.Module:
    """The published algorithm, step by step, without care for speed."""
    torch.manual_seed(seed)
    model = copy.deepcopy(original)
    noises = {label: learned_noise(model, train, label, method) for label in FORGET}
    kept = retained(train, method.retain_per_class)
    impair = [
        (image, label)
        for label, noise in noises.items()
        for _ in range(method.noise_repeats)
        for image in noise.detach()
    ] + kept
    one_epoch(model, impair, method.impair_learning_rate, method.batch_size)
    one_epoch(model, kept, method.repair_learning_rate, method.batch_size)
    return model.eval()


def learned_noise(model: nn.Module, train: TensorDataset, label: int, method: UNSIR) -> Tensor:
    """Error-maximising noise for one class, against the model in evaluation mode."""
    model.eval()
    shape = train.tensors[0].shape[1:]
    noise = torch.randn(method.noise_images, *shape, requires_grad=True)
    labels = torch.full((method.noise_images,), label)
    optimizer = torch.optim.Adam([noise], lr=method.noise_learning_rate)
    for _ in range(method.noise_steps):
        size_penalty = method.noise_penalty / shape.numel() * noise.square().sum((1, 2, 3)).mean()
        loss = -F.cross_entropy(model(noise), labels) + size_penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    return noise


def retained(train: TensorDataset, per_class: int) -> list[tuple[Tensor, int]]:
    """The first examples of every kept class in a random order."""
    counts: dict[int, int] = {}
    chosen: list[tuple[Tensor, int]] = []
    for index in torch.randperm(len(train)).tolist():
        image, label = train[index]
        label = int(label)
        if label not in FORGET and counts.get(label, 0) < per_class:
            counts[label] = counts.get(label, 0) + 1
            chosen.append((image, label))
    return chosen


def one_epoch(model: nn.Module, examples: list[tuple[Tensor, int]], rate: float, batch_size: int) -> None:
    """One pass with Adam, keeping count of what is predicted right."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    right = 0
    for images, labels in DataLoader(examples, batch_size=batch_size, shuffle=True):
        optimizer.zero_grad()
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        right += int((logits.argmax(1) == labels).sum())


def subset(data: TensorDataset, classes: Sequence[int]) -> TensorDataset:
    """The examples of these classes."""
    chosen = torch.isin(data.tensors[1], torch.tensor(classes))
    return TensorDataset(*(tensor[chosen] for tensor in data.tensors))


def without(data: TensorDataset, classes: Sequence[int]) -> TensorDataset:
    """The other examples."""
    return subset(data, [label for label in range(10) if label not in classes])


def report(results: Results, cells: list[dict[str, Any]]) -> None:
    """Print accuracies and ratios with intervals, and draw them."""
    ways = ("transcription", "expunge", "expunge, channels-last")
    print("| | seconds | times as fast (95 % interval) | " + " | ".join(SETS) + " |\n" + "| --- " * 6 + "|")
    ratios = {}
    for way in ways:
        ratios[way] = [cell["transcription, seconds"] / cell[f"{way}, seconds"] for cell in cells]
        seconds = statistics.mean(cell[f"{way}, seconds"] for cell in cells)
        accuracies = " | ".join(interval([cell[f"{way}, accuracy, {where}"] for cell in cells]) for where in SETS)
        print(f"| {way} | {seconds:.2f} | {interval(ratios[way])} | {accuracies} |")
    draw_ratios(results, ratios, "times as fast as the transcription, each seed")


if __name__ == "__main__":
    main()
