"""Noisy label: teach the model to put noise where something of a forget image is hidden."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from expunge.methods._images import ImageMethod, matched_noise, step_draw
from expunge.methods.base import Maturity
from expunge.problem import Problem
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run


@dataclass(frozen=True)
class NoisyLabel(ImageMethod):
    """Train the whole model on held images as they are, and on forget images whose hidden part is to be noise.

    The noise is drawn anew at each step, in pixels, with the mean and the deviation of the batch. (The code for MAGE
    draws tokens around the mean token number instead; numbers of tokens have no order.)
    """

    paper: ClassVar = "Li et al. 2024 (arXiv 2402.00351), baseline Noisy Label"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a copy of the model."""
        task = cast(ImageToImage, problem.task)

        def towards_noise(model: nn.Module, batch: ImageBatch) -> Tensor:
            draw, images = step_draw(), batch["images"]
            hidden = task.training_mask(model, batch, draw)
            return task.family.losses(model, images, hidden, draw, matched_noise(images, draw))

        def hold(model: nn.Module, batch: ImageBatch) -> Tensor:
            draw = step_draw()
            return task.family.losses(model, batch["images"], task.training_mask(model, batch, draw), draw)

        model = run.copy(problem.model)
        self.minimise(problem, run, "relabel", model, towards_noise, hold)
        return model.eval()
