"""The development split of methods of our own: small pictures, models of them that are kept, and requests.

Settings are chosen here and confirmed elsewhere, on other classes and seeds: here are classes 0 to 4, seeds below 10.
"""

from collections.abc import Sequence
from functools import cache, partial

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

import _cifar10
from _cifar10 import FOLDER, TASK, Size, Trained, augment
from expunge import Execution, Problem, Run, Supervised, split
from expunge.networks import ResNet9
from expunge.storage import read_tensors, write_tensors
from expunge.training import reproducible

SIZE = Size("development", train_per_class=500, test_per_class=200, epochs=10, seeds=2)
REQUESTS = ((0, (0,)), (1, (3,)))
"""Seed of the original, and the classes that it is to forget."""

ORACLE_SEEDS = (5, 6, 7)
EXECUTION = Execution(device="cpu", channels_last=True, progress=False)


@cache
def pictures() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set, of which each pixel is the mean of two by two of the original's."""
    file = FOLDER / "cache" / "development" / "pictures.safetensors"
    if not file.exists():
        named: dict[str, Tensor] = {}
        for name, part in zip(("train", "test"), _cifar10.load(SIZE), strict=True):
            named |= {f"{name}.inputs": F.avg_pool2d(part.tensors[0], 2), f"{name}.labels": part.tensors[1]}
        write_tensors(file, named, {})
    tensors, _ = read_tensors(file)
    train, test = (TensorDataset(tensors[f"{name}.inputs"], tensors[f"{name}.labels"]) for name in ("train", "test"))
    return train, test


def recipe(epochs: float = SIZE.epochs) -> Supervised:
    """ResNet-9 of width 16, trained as in the other benchmarks; crops move by 2 pixels of 16."""
    return Supervised(
        partial(ResNet9, 3, 10, width=16),
        TASK,
        epochs=epochs,
        batch_size=128,
        optimizer=_cifar10.recipe(SIZE).optimizer,
        augment=partial(augment, border=2),
        execution=EXECUTION,
    )


def trained(forget: Sequence[int], seed: int) -> Trained:
    """The model of this seed trained without the forgotten classes; from the cache where it is there."""
    without = f"without-{'-'.join(map(str, forget))}" if forget else "all"
    file = FOLDER / "cache" / "development" / f"{without}-seed{seed}" / "model.safetensors"
    how = recipe()
    if file.exists():
        tensors, cost = read_tensors(file)
        model = how.build()
        model.load_state_dict(tensors)
        return Trained(model.eval(), **cost)
    train, _ = pictures()
    with reproducible():
        run = Run(TASK, seed, EXECUTION)
        model = how.fit(split(train, classes=forget).retain if forget else train, run)
    (record,) = run.phases
    write_tensors(file, model.state_dict(), {"seconds": record.seconds, "examples": record.examples})
    return Trained(model, record.seconds, record.examples)


@cache
def problem(seed: int, forget: tuple[int, ...]) -> Problem:
    """The original of this seed, asked to forget these classes."""
    train, test = pictures()
    parts = split(train, classes=forget)
    model = trained((), seed).model
    return Problem(model, TASK, parts.forget, parts.retain, test, parts.classes, recipe=recipe())
