"""Drawing a small part of the retain set, as several methods do."""

import torch

from expunge.data import MapDataset, subset
from expunge.errors import UnsupportedTaskError
from expunge.tasks import Task


def balanced_subset(task: Task, retain: MapDataset, per_class: int | None, generator: torch.Generator) -> MapDataset:
    """At most `per_class` examples of each class, drawn at random; everything where `per_class` is None.

    Raises:
        UnsupportedTaskError: The task has no classes.
    """
    if per_class is None:
        return retain
    labels = task.labels_of(retain)
    if labels is None:
        raise UnsupportedTaskError(f"retain_per_class: {type(task).__name__} has no classes; leave it out")
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = [shuffled[labels[shuffled] == label][:per_class] for label in labels.unique()]
    return subset(retain, torch.cat(chosen))
