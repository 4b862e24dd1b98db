"""Statistics of BatchNorm layers, measured anew after weights were changed by hand."""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from expunge.data import MapDataset, View
from expunge.training import Run
from expunge.training.batches import fetch

MOST_EXAMPLES, _BATCH = 512, 256


def has_statistics(model: nn.Module) -> bool:
    """Whether a layer of the model keeps statistics of what it has seen."""
    return bool(_layers(model))


def remeasure_statistics(run: Run, model: nn.Module, dataset: MapDataset) -> None:
    """Replace running means and variances, in place, by their plain averages over batches of a dataset.

    At most 512 examples are read, drawn at random, 256 at a time. Only these layers are in training mode while that
    lasts, so no dropout and no other layer differs from evaluation; a model without such layers stays as it is.
    """
    layers = _layers(model)
    if not layers:
        return
    drawn = torch.randperm(len(dataset), generator=run.generator("statistics"))[:MOST_EXAMPLES]
    size = min(_BATCH, run.execution.micro_batch_size or _BATCH)
    modes = [(layer, layer.training, layer.momentum) for layer in layers]
    view, was_training = View.of(dataset), model.training
    model.to(run.device).eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch then averages over batches
        layer.train()
    try:
        with torch.no_grad():
            for positions in drawn.tensor_split(math.ceil(len(drawn) / size)):
                run.task.losses(model, run.to_device(fetch(run.task, [view], positions)))
    finally:
        model.train(was_training)
        for layer, training, momentum in modes:
            layer.training, layer.momentum = training, momentum


def _layers(model: nn.Module) -> list[_NormBase]:
    return [module for module in model.modules() if isinstance(module, _NormBase) and module.running_mean is not None]
