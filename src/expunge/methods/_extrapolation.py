"""Going on in the direction in which tuning on retained data leads, as far as it does those data no harm."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.errors import SettingError
from expunge.image_models.base import masked_mean
from expunge.methods._normalisation import remeasure_statistics
from expunge.problem import Problem, forgotten_kinds
from expunge.tasks import Batch, ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run, over_batches

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""How far to go: 1 is where the tuning led."""

SHARE_LEFT_OUT, MOST_LEFT_OUT = 0.1, 500

T = TypeVar("T")


def parted(problem: Problem, run: Run) -> tuple[MapDataset, MapDataset]:
    """Data to tune on, and data to find the factor with, which are of kinds that are kept.

    The latter is the holdout, where there is one, without classes that are named and without labels that the forget set
    has and the retain set has not: neither the original nor the tuned model has seen it. Otherwise it is left out of
    the retain set, which the original has seen, so that the factor that does no harm comes out smaller.
    """
    retain, holdout = cast(MapDataset, problem.retain), problem.holdout
    if holdout is None:
        return left_out(retain, run)
    gone = torch.tensor(problem.classes) if problem.classes else forgotten_kinds(problem.task, problem.forget, retain)
    labels = problem.task.labels_of(holdout) if len(gone) else None
    if labels is not None:
        kept = (~torch.isin(labels, gone)).nonzero().flatten()
        if len(kept) == 0:
            return left_out(retain, run)
        holdout = subset(holdout, kept)
    drawn = torch.randperm(len(holdout), generator=run.generator("unseen"))[:MOST_LEFT_OUT]
    return retain, subset(holdout, drawn.sort().values)


def left_out(data: MapDataset, run: Run) -> tuple[MapDataset, MapDataset]:
    """Data to tune on, and a tenth of them, at most 500, that is left out of it to find the factor with.

    Raises:
        SettingError: There are too few.
    """
    count = min(int(len(data) * SHARE_LEFT_OUT), MOST_LEFT_OUT)
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


def over_factors(
    run: Run,
    original: nn.Module,
    tuned: nn.Module,
    retain: MapDataset,
    dataset: MapDataset,
    measure: Callable[[nn.Module, Batch], T],
) -> list[list[T]]:
    """What is measured, batch by batch, of the original and of the model at each of `FACTORS`.

    Args:
        run: Where it belongs to.
        original: Where the tuning began, on the run's device.
        tuned: Where it led; it is not changed.
        retain: What statistics of normalisation layers are measured on at each factor.
        dataset: What is measured on.
        measure: Of a model and a batch.
    """
    found = [over_batches(run, original, dataset, measure)]
    for factor in FACTORS:
        model = extrapolated(run, original, run.frozen(tuned), factor, retain)
        found.append(over_batches(run, model, dataset, measure))
    return found


def extrapolated(run: Run, original: nn.Module, tuned: nn.Module, factor: float, retain: MapDataset) -> nn.Module:
    """The tuned model, moved in place to p + factor (q - p); running statistics are measured anew on retained data.

    At a factor of 1 nothing is changed, statistics included.
    """
    if factor != 1:
        with_weights(tuned, original, factor)
        remeasure_statistics(run, tuned, retain)
    return tuned


def with_weights(tuned: nn.Module, original: nn.Module, factor: float) -> nn.Module:
    """Set the weights of a tuned model to p + factor (q - p), in place; buffers stay those of the tuned model."""
    before = dict(original.named_parameters())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            start = before[name].to(parameter)
            parameter.copy_(start + factor * (parameter - start))
    return tuned
