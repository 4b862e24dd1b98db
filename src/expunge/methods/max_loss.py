"""Max loss: restore forget images badly, up to a bound."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.image_models import Draw
from expunge.methods._images import ImageMethod, image_draw, matched_noise, step_draw
from expunge.methods.base import Maturity
from expunge.problem import Problem
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run, over_batches


@dataclass(frozen=True)
class MaxLoss(ImageMethod):
    """Minimise the loss of held images minus alpha times that of forget images, over the whole model.

    The published baseline is unbounded and ends in a model that restores nothing. Here the loss of a forget image
    counts only up to what the original's would be, on average, if noise were the truth.
    """

    paper: ClassVar = "Li et al. 2024 (arXiv 2402.00351), baseline Max Loss; the bound is ours"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a copy of the model."""
        task = cast(ImageToImage, problem.task)
        bound = self._bound(problem, run)

        def climb(model: nn.Module, batch: ImageBatch) -> Tensor:
            return -self._losses(task, model, batch, step_draw()).clamp(max=bound)

        def hold(model: nn.Module, batch: ImageBatch) -> Tensor:
            return self._losses(task, model, batch, step_draw())

        model = run.copy(problem.model)
        self.minimise(problem, run, "climb", model, climb, hold)
        return model.eval()

    def _bound(self, problem: Problem, run: Run) -> float:
        task = cast(ImageToImage, problem.task)

        def wrong(model: nn.Module, batch: ImageBatch) -> Tensor:
            draw = image_draw(run, batch)
            return self._losses(task, model, batch, draw, matched_noise(batch["images"], draw))

        forget = cast(MapDataset, problem.forget)
        return float(torch.cat(over_batches(run, run.frozen(problem.model), forget, wrong, self.batch_size)).mean())

    def _losses(
        self, task: ImageToImage, model: nn.Module, batch: ImageBatch, draw: Draw, target: Tensor | None = None
    ) -> Tensor:
        return task.family.losses(model, batch["images"], task.training_mask(model, batch, draw), draw, target)
