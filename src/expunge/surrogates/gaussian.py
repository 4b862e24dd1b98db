"""Inputs drawn from the moments of each class."""

import torch
from torch.utils.data import TensorDataset

from expunge.errors import DataError
from expunge.states.moments import ClassMoments
from expunge.tasks import Classification
from expunge.training.seeds import generator


def sample_gaussians(
    moments: ClassMoments,
    task: Classification,
    examples: int,
    *,
    shape: tuple[int, ...] | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
) -> TensorDataset:
    """Draw inputs of normal classes with the recorded means, covariances and shares.

    Args:
        moments: What `expunge.record(..., kind="moments")` kept.
        task: What the model is for.
        examples: How many to draw.
        shape: Of one input; a vector by default.
        bounds: Least and largest value of an input's elements; values beyond are put onto them. By default none.
        seed: Of the draw.

    Returns:
        Inputs (examples, *shape) in the default precision and labels, in the positions where the task looks for them.

    Raises:
        DataError: The shape does not hold as many numbers as were recorded.
    """
    features = moments.shape[0]
    sides = (features,) if shape is None else shape
    if torch.Size(sides).numel() != features:
        raise DataError(f"inputs of shape {sides} do not hold the {features} features that were recorded")
    draw = generator(seed, "gaussian surrogate")
    labels = torch.multinomial(moments.counts, examples, replacement=True, generator=draw)
    values, vectors = torch.linalg.eigh(moments.covariances)
    roots = vectors * values.clamp(min=0).sqrt()[:, None, :]
    noise = torch.randn(examples, features, generator=draw, dtype=torch.double)
    inputs = moments.means[labels]
    for label in labels.unique().tolist():
        mine = labels == label
        inputs[mine] += noise[mine] @ roots[label].T
    if bounds is not None:
        inputs = inputs.clamp(*bounds)
    return TensorDataset(*task.fields(inputs.reshape(examples, *sides).to(torch.get_default_dtype()), labels))
