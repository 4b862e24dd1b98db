"""The retained examples that lie nearest to the forget set, where unlearning does most damage."""

import torch
from torch import nn

from expunge.data import MapDataset, subset
from expunge.training import Run, over_batches

NEIGHBOURS = "retain, nearest to forget"
_CHUNK = 1024


def neighbours(run: Run, original: nn.Module, forget: MapDataset, retain: MapDataset, count: int) -> MapDataset:
    """The `count` retained examples with the smallest distance to any forget example.

    Distances are Euclidean between the original's features, each scaled to unit variance over the retained ones.
    """
    near, far = (
        torch.cat(over_batches(run, original, dataset, run.task.features)).double() for dataset in (forget, retain)
    )
    scale = far.std(0)
    # a unit that is dead on retained examples decides nothing
    scale = torch.where(scale > 1e-6 * scale.max(), scale, 1.0)
    distances = torch.cat([torch.cdist(part / scale, near / scale).amin(1) for part in far.split(_CHUNK)])
    return subset(retain, distances.argsort(stable=True)[:count].sort().values)
