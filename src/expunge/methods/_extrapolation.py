"""Going on in the direction in which tuning on retained data leads, as far as it does those data no harm."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.errors import SettingError
from expunge.image_models.base import masked_mean
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run, over_batches

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""How far to go: 1 is where the tuning led."""

_LEFT_OUT, _MOST_LEFT_OUT = 0.1, 500


def left_out(data: MapDataset, run: Run) -> tuple[MapDataset, MapDataset]:
    """Data to tune on, and a tenth of them, at most 500, that is left out of it to find the factor with.

    Raises:
        SettingError: There are too few.
    """
    count = min(int(len(data) * _LEFT_OUT), _MOST_LEFT_OUT)
    if count < 1:
        raise SettingError(
            f"{len(data)} held examples are too few to leave a tenth of them out, by which to find how far to go; pass "
            "10 at least, or set `extrapolation`"
        )
    order = torch.randperm(len(data), generator=run.generator("left out"))
    return subset(data, order[count:].sort().values), subset(data, order[:count].sort().values)


def largest_harmless(errors: Sequence[float]) -> float:
    """The largest factor at which the error is no higher than the original's; 1 where there is none.

    Args:
        errors: The original's on examples left out, and that at each of `FACTORS`.
    """
    harmless = [factor for factor, error in zip(FACTORS, errors[1:], strict=True) if error <= errors[0]]
    return max(harmless, default=FACTORS[0])


def errors_of_outputs(run: Run, unseen: MapDataset, original: nn.Module, tuned: nn.Module) -> list[float]:
    """Mean squared error on the hidden part of p + c (q - p), of images p of the original and q of the tuned model.

    Returns:
        One for c = 0 and for each of `FACTORS`.
    """
    task = cast(ImageToImage, run.task)

    def errors(model: nn.Module, batch: ImageBatch) -> Tensor:
        images, hidden = batch["images"], task.hidden(original, batch)
        p, q = (task.reconstructions(each, batch) for each in (original, model))
        drawn = [p + factor * (q - p) for factor in (0.0, *FACTORS)]
        return torch.stack([masked_mean((each - images).square(), hidden) for each in drawn], 1)

    return torch.cat(over_batches(run, tuned, unseen, errors)).double().mean(0).tolist()


def errors_of_weights(run: Run, unseen: MapDataset, original: nn.Module, tuned: nn.Module) -> list[float]:
    """Mean loss of models with weights p + c (q - p), p of the original and q of the tuned model.

    Returns:
        One for c = 0 and for each of `FACTORS`.
    """
    means: list[float] = []
    for factor in (0.0, *FACTORS):
        model = with_weights(run.frozen(tuned), original, factor)
        means.append(float(torch.cat(over_batches(run, model, unseen, run.task.losses)).double().mean()))
    return means


def with_weights(tuned: nn.Module, original: nn.Module, factor: float) -> nn.Module:
    """Set the weights of a tuned model to p + factor (q - p), in place; buffers stay those of the tuned model."""
    before = dict(original.named_parameters())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            start = before[name].to(parameter)
            parameter.copy_(start + factor * (parameter - start))
    return tuned
