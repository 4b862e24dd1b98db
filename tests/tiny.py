"""Tiny data, models and problems made in code, for every test to share."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import datasets as hf
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, ViTConfig, ViTForImageClassification

from expunge.data import MapDataset
from expunge.networks import ResNet9, ResNet18, all_cnn, mlp, small_cnn
from expunge.problem import Problem, split
from expunge.tasks import Classification
from expunge.training import Algorithm, Execution, Optimizer, Run, Supervised, over_batches

CLASSES = 4
FEATURES = 12
SIDE = 8

QUIET = Execution(device="cpu", progress=False)
"""Tests on the CPU without bars."""


def vectors(per_class: int = 30, *, classes: int = CLASSES, spread: float = 0.7, seed: int = 0) -> TensorDataset:
    """Gaussian clouds around fixed centres; `seed` draws the examples, never the centres."""
    centres = torch.randn(classes, FEATURES, generator=torch.Generator().manual_seed(1))
    return _clouds(centres, per_class, spread, seed)


def images(
    per_class: int = 24, *, classes: int = CLASSES, side: int = SIDE, spread: float = 0.7, seed: int = 0
) -> TensorDataset:
    """Colour images around one fixed pattern a class."""
    coarse = torch.randn(classes, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    patterns = nn.functional.interpolate(coarse, size=(side, side), mode="nearest")
    return _clouds(patterns, per_class, spread, seed)


def _clouds(centres: Tensor, per_class: int, spread: float, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(100 + seed)
    labels = torch.arange(len(centres)).repeat(per_class)
    noise = torch.randn((len(labels), *centres.shape[1:]), generator=generator)
    return TensorDataset(centres[labels] + spread * noise, labels)


def as_tensors(data: TensorDataset) -> MapDataset:
    return data


def as_tuples(data: TensorDataset) -> MapDataset:
    return [(data.tensors[0][index], int(data.tensors[1][index])) for index in range(len(data))]


def as_mappings(data: TensorDataset) -> MapDataset:
    return [{"id": f"example {index}", "x": value, "y": label} for index, (value, label) in enumerate(data)]


def as_hugging_face(data: TensorDataset) -> MapDataset:
    inputs, labels = data.tensors
    columns = {"pixel_values": inputs.tolist(), "label": labels.tolist()}
    return hf.Dataset.from_dict(columns).with_format("torch")


FORMS: dict[str, Callable[[TensorDataset], MapDataset]] = {
    "tensors": as_tensors,
    "tuples": as_tuples,
    "mappings": as_mappings,
    "hugging face": as_hugging_face,
}


def tiny_mobilenet() -> nn.Module:
    settings: dict[str, Any] = {"depth_multiplier": 0.25, "image_size": 16, "tf_padding": False}
    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=CLASSES, **settings))


def tiny_vit() -> nn.Module:
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "image_size": SIDE, "patch_size": 4}
    return ViTForImageClassification(ViTConfig(num_labels=CLASSES, **shape))


@dataclasses.dataclass(frozen=True)
class Shape:
    """A kind of model: how to build it and what it eats."""

    build: Callable[[], nn.Module]
    data: Callable[[], TensorDataset]
    learning_rate: float = 0.01
    epochs: int = 4


SHAPES = {
    "mlp": Shape(lambda: mlp(FEATURES, CLASSES, hidden=(16,)), vectors, epochs=8),
    "small_cnn": Shape(lambda: small_cnn(3, CLASSES, width=4), images, epochs=10),
    "all_cnn": Shape(lambda: all_cnn(3, CLASSES, width=4), images, epochs=10),
    "ResNet9": Shape(lambda: ResNet9(3, CLASSES, width=4), images),
    "ResNet18": Shape(lambda: ResNet18(3, CLASSES, width=4), images),
    "MobileNetV2": Shape(tiny_mobilenet, lambda: images(side=16, per_class=12), epochs=4),
    "ViT": Shape(tiny_vit, images, learning_rate=0.003, epochs=12),
}

TASK = Classification(CLASSES)


def recipe(shape: Shape, *, epochs: float | None = None) -> Supervised:
    """How models of this shape are trained in the tests."""
    optimizer = Optimizer(shape.learning_rate, Algorithm.ADAM)
    return Supervised(
        shape.build, TASK, epochs=epochs or shape.epochs, batch_size=32, optimizer=optimizer, execution=QUIET
    )


def problem(
    model: nn.Module, data: MapDataset, *, classes: tuple[int, ...] = (0,), recipe: Supervised | None = None
) -> Problem:
    """Forget whole classes of `data`."""
    parts = split(data, classes=classes)
    return Problem(model, TASK, parts.forget, parts.retain, classes=classes, recipe=recipe)


def restated(original: Problem, data: MapDataset) -> Problem:
    """The same request over the same examples in another form."""
    parts = split(data, classes=original.classes)
    return dataclasses.replace(original, forget=parts.forget, retain=parts.retain)


def logits(model: nn.Module, dataset: MapDataset, task: Classification = TASK) -> Tensor:
    """Outputs for a whole dataset, in its order."""
    return torch.cat(over_batches(Run(task, execution=QUIET), model, dataset, task.outputs))


def accuracy(model: nn.Module, dataset: MapDataset, task: Classification = TASK) -> float:
    """Share of a dataset that a model gets right."""
    return float((logits(model, dataset, task).argmax(1) == task.labels_of(dataset)).double().mean())


def tensors_of(dataset: MapDataset) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a subset of a TensorDataset."""
    assert isinstance(dataset, Subset)
    return dataset.dataset[dataset.indices]


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def interval(values: list[float]) -> tuple[float, float]:
    """The 99 % Student interval of a mean."""
    from scipy import stats

    sample = torch.tensor(values, dtype=torch.double)
    half = float(stats.t.ppf(0.995, len(values) - 1)) * float(sample.std()) / len(values) ** 0.5
    return float(sample.mean()) - half, float(sample.mean()) + half


def chunks(total: int, size: int) -> Iterator[range]:
    """Consecutive ranges."""
    return (range(start, min(start + size, total)) for start in range(0, total, size))
