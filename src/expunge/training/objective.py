"""What is minimised, and how: terms, optimisers, schedules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import SettingError
from expunge.settings import require_at_least, require_below, require_one_of, require_positive, require_whole
from expunge.tasks import Batch

Objective = Callable[[nn.Module, Batch], Tensor]
"""Maps a model and a batch to one number an example, (batch,), to be made small."""

ReferredObjective = Callable[[nn.Module, Batch, Tensor], Tensor]
"""The same, from what is known beforehand of each example of the batch besides: (batch, ...)."""


@dataclass(frozen=True)
class Term:
    """One part of what a phase minimises: `weight` times the mean of `objective` over batches of `data`.

    Args:
        data: Where batches are drawn from, or several datasets whose examples are mixed in one batch.
        objective: One number an example. `task.losses` is one.
        weight: Negative to maximise.
        batch_size: Examples a step, over all processes.
        augment: Applied to each batch on the device, under the step's own seed.
        reference: (examples, ...) what is known beforehand of each example of all parts, in their order, such as
            another model's outputs or another label; the objective is given the rows of its batch as a third argument.
            It is kept where it lies and only those rows are moved to the device.
    """

    data: MapDataset | tuple[MapDataset, ...]
    objective: Objective | ReferredObjective
    weight: float = 1.0
    batch_size: int = 256
    augment: Callable[[Batch], Batch] | None = None
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the batch size, that there are data, and that the reference speaks of each example."""
        require_whole(self, "batch_size")
        if self.length == 0:
            raise SettingError("there are no examples to train on")
        if self.reference is not None and len(self.reference) != self.length:
            raise SettingError(
                f"the reference has {len(self.reference)} rows for {self.length} examples; give each example one, "
                "those of the first part first"
            )

    def losses(self, model: nn.Module, batch: Batch, positions: Tensor) -> Tensor:
        """The objective on a batch whose examples lie at these positions: (batch,)."""
        if self.reference is None:
            return cast(Objective, self.objective)(model, batch)
        rows = self.reference[positions].to(next(model.parameters()).device)
        return cast(ReferredObjective, self.objective)(model, batch, rows)

    @property
    def parts(self) -> tuple[MapDataset, ...]:
        """The datasets that are mixed."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def length(self) -> int:
        """Number of examples in all parts."""
        return sum(len(part) for part in self.parts)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass; an epoch is cut into this many batches of nearly equal size."""
        return math.ceil(self.length / self.batch_size)


class Schedule(StrEnum):
    """How the learning rate moves over a phase."""

    CONSTANT = "constant"
    COSINE = "cosine"
    ONE_CYCLE = "one-cycle"

    def factor(self, progress: float) -> float:
        """Factor on the learning rate at `progress` in [0, 1)."""
        match self:
            case Schedule.CONSTANT:
                return 1.0
            case Schedule.COSINE:
                return 0.5 * (1 + math.cos(math.pi * progress))
            case Schedule.ONE_CYCLE:
                rise = 0.3
                return 0.04 + 0.96 * progress / rise if progress < rise else (1 - progress) / (1 - rise)


class Algorithm(StrEnum):
    """Optimisation algorithms."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"


@dataclass(frozen=True)
class Optimizer:
    """Settings of an optimiser.

    Args:
        learning_rate: The peak rate.
        algorithm: `adam`, `adamw` or `sgd`.
        momentum: Of SGD.
        nesterov: Of SGD.
        weight_decay: Coupled for Adam and SGD, decoupled for AdamW.
        schedule: How the rate moves over the phase.
        clip_norm: Largest norm of the whole gradient.
        clip_value: Largest absolute value of one gradient entry.
    """

    learning_rate: float
    algorithm: Algorithm = Algorithm.ADAM
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.CONSTANT
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges, and that torch can build what is asked for."""
        require_positive(self, "learning_rate", "clip_norm", "clip_value")
        require_at_least(self, 0, "momentum", "weight_decay")
        require_below(self, 1, "momentum")
        require_one_of(self, "algorithm", Algorithm)
        require_one_of(self, "schedule", Schedule)
        if self.nesterov and not self.momentum:
            raise SettingError("nesterov needs a momentum above 0, such as momentum=0.9")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser."""
        common: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        match self.algorithm:
            case Algorithm.ADAM:
                return torch.optim.Adam(parameters, **common)
            case Algorithm.ADAMW:
                return torch.optim.AdamW(parameters, **common)
            case Algorithm.SGD:
                return torch.optim.SGD(parameters, momentum=self.momentum, nesterov=self.nesterov, **common)
