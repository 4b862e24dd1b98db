"""What methods for image-to-image models share: the settings of training, the held data, and one mask for all terms."""

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, View
from expunge.image_models import Draw, ImageModel
from expunge.methods.base import Method, Need, Tier, require_need
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Algorithm, Objective, Optimizer, Run, Schedule, Term
from expunge.training.batches import fetch
from expunge.training.objective import ReferredObjective
from expunge.training.seeds import places_in_step

Held = Literal["retain", "surrogate", "none"]


@dataclass(frozen=True)
class ImageMethod(Method):
    """Settings that all these methods have.

    Args:
        forget_weight: Weight alpha of the forget term beside the one that holds what is kept. Default .2 (Li et al.
            2024, code for MAGE, README).
        held: What the model is held on: the `retain` set; the `surrogate`, a proxy for a retain set that can no
            longer be read; or `none`.
        learning_rate: The peak rate. Default ours; the code has 5e-5, which does little in a few hundred steps.
        epochs: Passes over the larger of the two sets. Default 6 (ibid.).
        batch_size: Of either set. Default 128 (ibid., 4 GPUs of 32).
        algorithm: AdamW (ibid.; its betas are .9 and .95, here torch's).
        weight_decay: .05 (ibid.).
        clip_norm: Largest gradient norm, or None for any. Default 3 (ibid.).
        schedule: Of the learning rate. Default: a rise and a fall, as there.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET})
    tier: ClassVar[Tier] = Tier.EMPIRICAL
    tasks: ClassVar = (ImageToImage,)

    forget_weight: float = 0.2
    held: Held = "retain"
    learning_rate: float = 5e-4
    epochs: float = 6
    batch_size: int = 128
    algorithm: Algorithm = Algorithm.ADAMW
    weight_decay: float = 0.05
    clip_norm: float | None = 3.0
    schedule: Schedule = Schedule.ONE_CYCLE

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "forget_weight", "learning_rate", "epochs", "clip_norm")
        require_at_least(self, 0, "weight_decay")
        require_whole(self, "batch_size")
        require_one_of(self, "held", ("retain", "surrogate", "none"))
        require_one_of(self, "algorithm", Algorithm)
        require_one_of(self, "schedule", Schedule)

    def require(self, problem: Problem) -> None:
        """Raise unless the problem holds the forget set and what the model is to be held on.

        Raises:
            MissingNeedError: It does not.
            EncoderError: The task names an encoder that the model has not, or that reaches into the decoder.
        """
        super().require(problem)
        family = cast(ImageToImage, problem.task).family
        if family.encoder is not None:
            family.parts(problem.model)
        if self.held != "none":
            require_need(type(self).__name__, problem, Need(self.held))

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser of the phase that forgets."""
        return Optimizer(
            self.learning_rate,
            self.algorithm,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            schedule=self.schedule,
        )

    def held_data(self, problem: Problem) -> MapDataset | None:
        """What the model is held on, if anything."""
        return {"retain": problem.retain, "surrogate": problem.surrogate, "none": None}[self.held]

    def minimise(
        self,
        problem: Problem,
        run: Run,
        phase: str,
        model: nn.Module,
        forget: Objective | ReferredObjective,
        hold: Objective | None,
        reference: Tensor | None = None,
    ) -> None:
        """Train in evaluation mode on one batch of either set a step; an epoch is a pass over the larger.

        Args:
            problem: What is to be forgotten.
            run: Where it belongs to.
            phase: Name of the phase.
            model: What is trained.
            forget: Of forget images.
            hold: Of held images, if there are any.
            reference: (forget images, ...) what is known beforehand of each forget image, for `forget`.
        """
        data, forgotten = self.held_data(problem), cast(MapDataset, problem.forget)
        terms = [Term(forgotten, forget, self.forget_weight, self.batch_size, reference=reference)]
        if data is not None:
            terms.append(Term(data, cast(Objective, hold), 1.0, self.batch_size))
        terms.sort(key=lambda term: -term.steps_per_epoch)
        run.train(phase, model, terms, self.optimizer, epochs=self.epochs, batch_statistics=False)


class EncoderOf(nn.Module):
    """An encoder by itself, so that training it on several devices passes through one forward."""

    def __init__(self, network: nn.Module, family: ImageModel) -> None:
        super().__init__()
        self.network = network
        self.family = family

    def forward(self, images: Tensor, hidden: Tensor, draw: Draw) -> list[Tensor]:
        """What the encoder hands to the decoder, one tensor (batch, ...) a connection."""
        return self.family.encode(self.network, images, hidden, draw)


def step_draw() -> Draw:
    """Random numbers of this step, one row for each place in it, whatever micro batches it is cut into.

    They are the same for every term of the step, as long as their batches are equally large.
    """
    seed, found = torch.initial_seed(), places_in_step()
    if found is None:
        return Draw(seed)
    rows, whole = found
    return Draw(seed, rows=rows, whole=whole)


def image_draw(run: Run, batch: ImageBatch) -> Draw:
    """Random numbers that stay with an image through the whole run."""
    return Draw(run.seed, batch["positions"])


def latent_distance(latents: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean squared difference over places and features, added up over connections: (batch,)."""
    each = [(own - target.to(own)).square().flatten(1).mean(1) for own, target in zip(latents, targets, strict=True)]
    return torch.stack(each).sum(0)


def matched_noise(images: Tensor, draw: Draw) -> Tensor:
    """Gaussian pixels with the mean and the standard deviation of a batch, cut to [0, 1]: the shape of the images."""
    noise = draw.normal("noise image", images.shape, images.device)
    return (noise * images.std() + images.mean()).clamp(0, 1)


def partners(run: Run, forget: int, held: int) -> Tensor:
    """For each of so many forget images the number of a held one, (forget,) int64.

    They follow from the run's seed. No two forget images share one, unless there are more of them than held ones.
    """
    draw, rounds = run.generator("partners"), -(-forget // held)
    return torch.cat([torch.randperm(held, generator=draw) for _ in range(rounds)])[:forget]


def images_at(task: ImageToImage, view: View, places: Tensor) -> Tensor:
    """Images of a dataset at some places, on the device of `places`: (places, channels, height, width)."""
    return cast(Tensor, fetch(task, [view], places.cpu())["images"]).to(places.device)
