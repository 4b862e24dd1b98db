"""Held images that look like others as far as these can be seen."""

from typing import cast

import torch
from torch import Tensor

from expunge.data import MapDataset, View
from expunge.errors import SettingError
from expunge.training import Run, bar
from expunge.training.batches import fetch

_CHUNK = 1024  # candidates: with 128 images of 224 pixels a side the products of one chunk take 0.6 GB


def candidates_of(run: Run, data: MapDataset, most: int, fewest: int) -> Tensor:
    """Held images among which neighbours are looked for: (candidates, channels, height, width), on the run's device.

    Args:
        run: Whose task reads them, and whose seed chooses them.
        data: The held images.
        most: So many at most, drawn at random.
        fewest: How many neighbours there have to be.

    Raises:
        SettingError: There are fewer.
    """
    if len(data) < fewest:
        raise SettingError(
            f"{len(data)} held images have no {fewest} neighbours to give; pass more, or fewer `neighbours`"
        )
    chosen = torch.randperm(len(data), generator=run.generator("candidates"))[:most].sort().values
    pieces: list[Tensor] = []
    with bar("candidates", len(chosen), enabled=run.execution.progress) as display:
        for positions in chosen.split(_CHUNK):
            images = cast(Tensor, fetch(run.task, [View.of(data)], positions)["images"])
            pieces.append(images.to(run.device))
            display.advance(len(positions))
    return torch.cat(pieces)


@torch.no_grad()
def mean_of_nearest(images: Tensor, hidden: Tensor, candidates: Tensor, count: int) -> Tensor:
    """The mean of the candidates that are nearest to each image by its visible pixels: the shape of the images.

    Args:
        images: (batch, channels, height, width).
        hidden: (batch, 1, height, width) bool, True where a pixel is hidden.
        candidates: (candidates, channels, height, width), as many as `count` at least.
        count: Of neighbours.
    """
    visible = (~hidden).expand_as(images).flatten(1).to(candidates.dtype)
    shown = images.to(candidates.dtype).flatten(1) * visible
    distances = shown.new_empty(len(images), 0)
    places = torch.empty(len(images), 0, dtype=torch.int64, device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # rounded products would exchange neighbours
        for start in range(0, len(candidates), _CHUNK):
            piece = candidates[start : start + _CHUNK].flatten(1)
            # |v (x - r)|² without |v x|², which all candidates share
            own = visible @ piece.square().T - 2 * shown @ piece.T
            numbers = torch.arange(start, start + len(piece), device=images.device).expand(len(images), -1)
            joined = torch.cat([distances, own], 1)
            distances, order = joined.topk(min(count, joined.shape[1]), largest=False)
            places = torch.cat([places, numbers], 1).gather(1, order)
    return torch.stack([candidates[places[:, rank]] for rank in range(count)]).mean(0).to(images.dtype)
