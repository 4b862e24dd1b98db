"""Drawing a small part of the retain set, as several methods do."""

import torch

from expunge.data import MapDataset, subset
from expunge.tasks.classification import Classification


def balanced_subset(
    task: Classification, retain: MapDataset, per_class: int | None, generator: torch.Generator
) -> MapDataset:
    """At most `per_class` examples of each class, drawn at random; everything where `per_class` is None."""
    if per_class is None:
        return retain
    labels = task.labels_of(retain)
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = [shuffled[labels[shuffled] == label][:per_class] for label in labels.unique()]
    return subset(retain, torch.cat(chosen))
