"""LatentRemap: train the encoder alone so that forget images land where noise lands, and the others stay."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.image_models import Draw
from expunge.methods._images import EncoderOf, ImageMethod, image_draw, latent_distance, matched_noise, step_draw
from expunge.methods.base import Maturity
from expunge.problem import Problem
from expunge.settings import require_one_of
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Algorithm, Objective, Run, over_batches

Target = Callable[[ImageBatch, Tensor, Draw], list[Tensor]]
"""Where the latents of images with a mask are to go."""


@dataclass(frozen=True)
class LatentRemap(ImageMethod):
    """Minimise L_R + alpha L_F over the encoder: the decoder keeps every bit.

    L_R is the squared distance of the latents of held images from those of the original encoder, and L_F that of the
    latents of forget images from what the original encoder makes of noise, both averaged over places and features (the
    public code; the paper writes norms). Both terms hide the same pixels. The model is trained in evaluation mode.

    A model retrained without the forget set still restores its images in a generic way, and noise does not: this goes
    past retraining, which itself tells that an image was forgotten. Where retraining is the aim, use
    `ExtrapolatedTuning`.

    Args:
        target: `noise image`: what the original encoder makes of Gaussian pixels with the mean and deviation of the
            batch, cut to [0, 1] (Li et al. 2024, code). `noise latent`: standard normal latents (the paper, appendix
            C.4, after its reviews).
        draws: `fresh` masks and noise at each step (code); or `fixed`: each image keeps its own through the run, so
            that the original's latents are computed once and no second encoder stays in memory.

    The preset `paper` has the rate of the code for MAGE; `paper-diffusion` alpha, rate, batch and passes of the code
    for Palette, whose forget target here is that of the paper.
    """

    paper: ClassVar = "Li et al. 2024 (arXiv 2402.00351), equations of L_R and L_F; public code for MAGE and Palette"
    maturity: ClassVar = Maturity.EXPERIMENTAL
    presets: ClassVar = MappingProxyType(
        {
            "paper": {"learning_rate": 5e-5},
            "paper-diffusion": {
                "forget_weight": 0.1,
                "learning_rate": 5e-5,
                "algorithm": Algorithm.ADAM,
                "weight_decay": 0.0,
                "clip_norm": None,
                "batch_size": 96,
                "epochs": 3,
            },
        }
    )

    target: Literal["noise image", "noise latent"] = "noise image"
    draws: Literal["fresh", "fixed"] = "fresh"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_one_of(self, "target", ("noise image", "noise latent"))
        require_one_of(self, "draws", ("fresh", "fixed"))

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train the encoder of a copy of the model."""
        family = cast(ImageToImage, problem.task).family
        student = EncoderOf(run.copy(problem.model), family)
        family.train_encoder_only(student.network)
        self.minimise(problem, run, "remap", student, *self._objectives(problem, run, student.network))
        return student.network.requires_grad_(True).eval()

    def _objectives(self, problem: Problem, run: Run, network: nn.Module) -> tuple[Objective, Objective]:
        """L_F and L_R."""
        teacher = EncoderOf(run.frozen(problem.model), cast(ImageToImage, problem.task).family)

        def stay(batch: ImageBatch, hidden: Tensor, draw: Draw) -> list[Tensor]:
            return teacher(batch["images"], hidden, draw)

        def leave(batch: ImageBatch, hidden: Tensor, draw: Draw) -> list[Tensor]:
            if self.target == "noise image":
                return teacher(matched_noise(batch["images"], draw), hidden, draw)
            like = enumerate(stay(batch, hidden, draw))
            return [draw.normal(f"latent {number}", each.shape, each.device) for number, each in like]

        return (
            self._towards(leave, problem.forget, run, network),
            self._towards(stay, self.held_data(problem), run, network),
        )

    def _towards(self, target: Target, data: MapDataset | None, run: Run, network: nn.Module) -> Objective:
        """Distance of the latents from a target; where draws are fixed, targets are computed here, once."""
        task = cast(ImageToImage, run.task)

        def drawn(batch: ImageBatch) -> tuple[Tensor, Draw]:
            draw = image_draw(run, batch) if self.draws == "fixed" else step_draw()
            return task.training_mask(network, batch, draw), draw

        def at_once(model: nn.Module, batch: ImageBatch) -> Tensor:
            hidden, draw = drawn(batch)
            with torch.no_grad():
                wanted = target(batch, hidden, draw)
            return latent_distance(model(batch["images"], hidden, draw), wanted)

        if self.draws == "fresh" or data is None:
            return at_once

        def looked_up(_: nn.Module, batch: ImageBatch) -> tuple[Tensor, list[Tensor]]:
            return batch["positions"], target(batch, *drawn(batch))

        pieces = over_batches(run, network, data, looked_up, self.batch_size)
        rows = {number: row for row, number in enumerate(torch.cat([piece[0] for piece in pieces]).tolist())}
        kept = [torch.cat(each) for each in zip(*(piece[1] for piece in pieces), strict=True)]

        def remembered(model: nn.Module, batch: ImageBatch) -> Tensor:
            hidden, draw = drawn(batch)
            places = torch.tensor([rows[number] for number in batch["positions"].tolist()])
            return latent_distance(model(batch["images"], hidden, draw), [each[places] for each in kept])

        return remembered
