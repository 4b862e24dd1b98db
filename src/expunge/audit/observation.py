"""What a model does on a dataset, example by example."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from expunge.data import MapDataset
from expunge.tasks import Batch
from expunge.training import Run, over_batches


@dataclass(frozen=True)
class Observation:
    """Quality of one model on one dataset.

    Attributes:
        quality: Measures by name, headline first, each (examples,).
        groups: (examples,) name of the group of each example.
    """

    quality: dict[str, NDArray[np.float64]]
    groups: NDArray[np.str_]

    @property
    def headline(self) -> str:
        """Name of the first measure."""
        return next(iter(self.quality))


def observe(run: Run, model: nn.Module, dataset: MapDataset) -> Observation:
    """Quality of every example of a dataset."""

    def measure(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], list[str]]:
        return dict(run.task.quality(model, batch)), list(run.task.groups(batch))

    pieces = over_batches(run, model, dataset, measure)
    quality = {name: torch.cat([piece[0][name] for piece in pieces]).double().numpy() for name in pieces[0][0]}
    return Observation(quality, np.asarray([group for piece in pieces for group in piece[1]]))


def outputs(run: Run, model: nn.Module, dataset: MapDataset) -> Tensor:
    """Outputs for every example of a dataset: (examples, ...)."""
    return torch.cat(over_batches(run, model, dataset, run.task.outputs))


def sample(dataset: MapDataset, count: int, generator: torch.Generator) -> MapDataset:
    """At most `count` examples, drawn without replacement, in the dataset's order."""
    if len(dataset) <= count:
        return dataset
    chosen = torch.randperm(len(dataset), generator=generator)[:count].sort().values
    return Subset(dataset, chosen.tolist())  # pyright: ignore[reportArgumentType]
