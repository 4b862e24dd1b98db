"""Retain label: answer a forget image as the original answers some held image."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, View
from expunge.methods._images import ImageMethod, images_at, partners, step_draw
from expunge.methods.base import Maturity
from expunge.problem import Problem
from expunge.settings import require_one_of
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run


@dataclass(frozen=True)
class RetainLabel(ImageMethod):
    """Train the whole model so that it says of each forget image what the original says of one held image.

    Each forget image has a partner of its own, drawn once by the run's seed; where there are more of them than held
    images, partners are shared as evenly as can be. The squared distance is between what decoders say of the
    hidden part: pixels, logits of tokens, or noise. On held images the model is to say what the original says.
    """

    paper: ClassVar = "Li et al. 2024 (arXiv 2402.00351), baseline Retain Label"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    def __post_init__(self) -> None:
        """Check the ranges, and that there are held images to answer with."""
        super().__post_init__()
        require_one_of(self, "held", ("retain", "surrogate"))

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a copy of the model."""
        task, original = cast(ImageToImage, problem.task), run.frozen(problem.model)
        held, forget = (cast(MapDataset, data) for data in (self.held_data(problem), problem.forget))
        view, chosen = View.of(held), partners(run, len(forget), len(held))

        def distance(model: nn.Module, batch: ImageBatch, shown: Tensor) -> Tensor:
            draw = step_draw()
            hidden = task.training_mask(model, batch, draw)
            with torch.no_grad():
                wanted = task.family.predict(original, shown, hidden, draw).values
            return task.family.predict(model, batch["images"], hidden, draw).distance(wanted)

        def as_a_partner(model: nn.Module, batch: ImageBatch, partner: Tensor) -> Tensor:
            return distance(model, batch, images_at(task, view, partner))

        def as_before(model: nn.Module, batch: ImageBatch) -> Tensor:
            return distance(model, batch, batch["images"])

        model = run.copy(problem.model)
        self.minimise(problem, run, "relabel", model, as_a_partner, as_before, chosen)
        return model.eval()
