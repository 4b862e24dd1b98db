"""Passes over a dataset without training."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from expunge.data import MapDataset
from expunge.tasks import Batch
from expunge.training.batches import in_order
from expunge.training.run import Run

T = TypeVar("T")

EVALUATION_BATCH = 512


def over_batches(
    run: Run,
    model: nn.Module,
    dataset: MapDataset,
    measure: Callable[[nn.Module, Batch], T],
    batch_size: int = EVALUATION_BATCH,
) -> list[T]:
    """Apply `measure` to each batch of a dataset, in order, in evaluation mode and without gradients.

    Batches are no larger than the run's `micro_batch_size`, which says how many examples fit in memory.
    Tensors in the results are moved to the CPU; the model's mode is restored, and the model moved to the run's device.
    """
    was_training, most = model.training, min(batch_size, run.execution.micro_batch_size or batch_size)
    model.to(run.device).eval()
    try:
        with torch.inference_mode():
            return [
                tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, measure(model, batch))
                for batch in map(run.to_device, in_order(run.task, dataset, most))
            ]
    finally:
        model.train(was_training)
