"""Bad Teacher: learn the forget set from a model that knows nothing, the rest from the original."""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.errors import SettingError
from expunge.methods._distillation import logits_of, softened_divergence
from expunge.methods._initialise import scrambled
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Batch, Classification
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class BadTeacher(Method):
    """Distil the forget set from a randomly initialised network and a part of the retain set from the original.

    Both sets are mixed in a batch. The divergence is KL(teacher || model), summed over classes where the code averages
    over them, which Adam does not notice. It works for whole classes, sub-classes and single examples. Becoming as
    unsure as an untrained network is more than retraining does: it would still generalise.

    Args:
        temperature: 1 (code).
        retain_share: Part of the retain set that is used. Default .3 (code).
        learning_rate: Of Adam. Default 1e-4 (code).
        epochs: Passes over both. Default 1 (code).
        batch_size: 256 (code).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Chundawat et al. 2023 (arXiv 2205.08096), section 4"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    temperature: float = 1.0
    retain_share: float = 0.3
    learning_rate: float = 1e-4
    epochs: float = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "temperature", "retain_share", "learning_rate", "epochs")
        require_whole(self, "batch_size")
        if self.retain_share > 1:
            raise SettingError(f"retain_share must be at most 1, not {self.retain_share!r}")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Ask both teachers once, then train a copy of the model."""
        task, forget = cast(Classification, problem.task), cast(MapDataset, problem.forget)
        whole = cast(MapDataset, problem.retain)
        order = torch.randperm(len(whole), generator=run.generator("retain subset"))
        retain = subset(whole, order[: math.ceil(self.retain_share * len(whole))])
        bad = logits_of(run, scrambled(run, problem.model), task, forget)
        good = logits_of(run, problem.model, task, retain)

        def divergence(model: nn.Module, batch: Batch, teacher: Tensor) -> Tensor:
            return softened_divergence(task.outputs(model, batch), teacher, self.temperature)

        model = run.copy(problem.model)
        term = Term((forget, retain), divergence, batch_size=self.batch_size, reference=torch.cat([bad, good]))
        run.train("distil", model, [term], Optimizer(self.learning_rate, Algorithm.ADAM), epochs=self.epochs)
        return model.eval()
