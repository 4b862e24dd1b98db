"""Random encoder: send each forget image to a random place of its own in the latents."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.methods._images import EncoderOf, ImageMethod, image_draw, latent_distance, step_draw
from expunge.methods.base import Maturity
from expunge.problem import Problem
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run, over_batches


@dataclass(frozen=True)
class RandomEncoder(ImageMethod):
    """Train the encoder alone so that a forget image's latents are one random vector, the same at every place.

    The vector is drawn once for each image, with the mean and the deviation that the original's latents of all forget
    images have, measured once before training, whatever batch the image is in. The published
    code draws anew at each step: then what is learned is the mean of the draws, a constant, which changes little.
    """

    paper: ClassVar = "Li et al. 2024 (arXiv 2402.00351), baseline Random Encoder; fixed targets are ours"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train the encoder of a copy of the model."""
        task = cast(ImageToImage, problem.task)
        student = EncoderOf(run.copy(problem.model), task.family)
        task.family.train_encoder_only(student.network)
        teacher = EncoderOf(run.frozen(problem.model), task.family)

        scales = self._scales(problem, run, teacher)

        def latents(model: nn.Module, batch: ImageBatch) -> tuple[list[Tensor], list[Tensor]]:
            draw = step_draw()
            hidden = task.training_mask(teacher.network, batch, draw)
            with torch.no_grad():
                before = teacher(batch["images"], hidden, draw)
            return model(batch["images"], hidden, draw), before

        def scatter(model: nn.Module, batch: ImageBatch) -> Tensor:
            own, before = latents(model, batch)
            draw = image_draw(run, batch)
            targets: list[Tensor] = []
            for number, each in enumerate(before):
                vector = draw.normal(f"latent {number}", _one_place(each), each.device)
                mean, deviation = scales[number]
                targets.append((vector * deviation + mean).expand_as(each))
            return latent_distance(own, targets)

        def stay(model: nn.Module, batch: ImageBatch) -> Tensor:
            return latent_distance(*latents(model, batch))

        self.minimise(problem, run, "scatter", student, scatter, stay)
        return student.network.requires_grad_(True).eval()

    def _scales(self, problem: Problem, run: Run, teacher: EncoderOf) -> list[tuple[float, float]]:
        """Mean and deviation of the original's latents of the forget set, for each connection."""
        task = cast(ImageToImage, problem.task)

        def moments(_: nn.Module, batch: ImageBatch) -> Tensor:
            draw = image_draw(run, batch)
            before = teacher(batch["images"], task.training_mask(teacher.network, batch, draw), draw)
            flat = [each.double().flatten(1) for each in before]
            return torch.stack([torch.stack([each.mean(1), each.square().mean(1)], 1) for each in flat], 1)

        forget = cast(MapDataset, problem.forget)
        pieces = over_batches(run, teacher.network, forget, moments, self.batch_size)
        mean, square = torch.cat(pieces).mean(0).unbind(1)
        return list(zip(mean.tolist(), (square - mean.square()).clamp(min=0).sqrt().tolist(), strict=True))


def _one_place(latents: Tensor) -> tuple[int, ...]:
    """The shape of one place: (batch, 1, features) of tokens, (batch, channels, 1, ...) of maps, else all of it."""
    if latents.ndim == 3:
        return (latents.shape[0], 1, latents.shape[2])
    return (*latents.shape[:2], *[1] * (latents.ndim - 2))
