"""SCRUB: disobey the original on the forget set, obey it on the retain set, in turns."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import MissingNeedError, SettingError
from expunge.methods._distillation import logits_of, softened_divergence
from expunge.methods.base import Maturity, Method, Need, Tier, require_need
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.tasks import Batch, Classification
from expunge.training import Algorithm, Optimizer, Run, Term, over_batches


@dataclass(frozen=True)
class SCRUB(Method):
    """Drive the model away from the original on the forget set and back to it on the retain set.

    In each of the first `max_epochs` epochs a pass over the forget set raises T² KL(original || model); in every epoch
    a pass over the retain set then lowers retain_weight · CE + distillation_weight · T² KL. One optimiser serves both.
    It works for whole classes, parts of them and single examples.

    With `rewind` (SCRUB+R) the model is put back to the end of that epoch after which its error on the forget set came
    nearest to what the last model errs on held-out data with the forget set's shares of classes. That needs `holdout`.

    Args:
        learning_rate: 5e-4 (code, large-scale notebook, as all defaults here).
        algorithm: SGD, with momentum .9.
        weight_decay: 5e-4.
        max_epochs: Epochs with a pass over the forget set. Default 2.
        epochs: Epochs in all. Default 3.
        temperature: T of the divergence. Default 4.
        retain_weight: Of the cross-entropy. Default .99.
        distillation_weight: Of the divergence on the retain set. Default .001.
        forget_batch_size: 32.
        batch_size: Of the retain set. Default 128.
        decay_epochs: Epochs after whose end the learning rate is divided by ten. Default (3, 5, 9), which three epochs
            do not reach.
        rewind: Choose the epoch in the end.

    The presets `small-scale` and `membership` have the settings of the notebooks of those names.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Kurmanji et al. 2023 (arXiv 2302.09880), section 3"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)
    presets: ClassVar = MappingProxyType(
        {
            "small-scale": {
                "algorithm": Algorithm.ADAM,
                "weight_decay": 0.1,
                "max_epochs": 3,
                "epochs": 10,
                "temperature": 2.0,
                "retain_weight": 1.0,
                "distillation_weight": 0.5,
                "forget_batch_size": 64,
                "batch_size": 32,
                "decay_epochs": (5, 8, 9),
            },
            "membership": {
                "max_epochs": 3,
                "epochs": 5,
                "retain_weight": 1.0,
                "distillation_weight": 0.5,
            },
        }
    )

    learning_rate: float = 5e-4
    algorithm: Algorithm = Algorithm.SGD
    weight_decay: float = 5e-4
    max_epochs: int = 2
    epochs: int = 3
    temperature: float = 4.0
    retain_weight: float = 0.99
    distillation_weight: float = 0.001
    forget_batch_size: int = 32
    batch_size: int = 128
    decay_epochs: tuple[int, ...] = (3, 5, 9)
    rewind: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "temperature")
        require_at_least(self, 0, "weight_decay", "retain_weight", "distillation_weight")
        require_whole(self, "max_epochs", "epochs", "forget_batch_size", "batch_size")
        require_one_of(self, "algorithm", Algorithm)
        if self.max_epochs > self.epochs:
            raise SettingError(f"max_epochs must be at most epochs ({self.epochs}), not {self.max_epochs}")
        decay = cast(object, self.decay_epochs)
        if not isinstance(decay, tuple | list) or any(type(epoch) is not int for epoch in self.decay_epochs):
            raise SettingError(f"decay_epochs must be a tuple of epochs, such as (5, 8), not {self.decay_epochs!r}")

    def require(self, problem: Problem) -> None:
        """Raise where something is missing; to rewind takes held-out data too."""
        super().require(problem)
        if self.rewind:
            require_need("SCRUB(rewind=True)", problem, Need.HOLDOUT)

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Take turns on a copy of the model, and rewind it if asked to."""
        task, forget = cast(Classification, problem.task), cast(MapDataset, problem.forget)
        watched = _Rewind.prepare(problem, task, run) if self.rewind else None
        terms = self._terms(problem, task, run)
        model = run.copy(problem.model)
        for epoch in range(1, self.epochs + 1):
            rate = self.learning_rate * 0.1 ** sum(epoch > last for last in self.decay_epochs)
            optimizer = Optimizer(rate, self.algorithm, momentum=0.9, weight_decay=self.weight_decay)
            passes = (0, 1) if epoch <= self.max_epochs else (1,)
            run.train(f"epoch-{epoch}", model, terms, optimizer, passes=passes, carry_optimizer=True)
            if watched is not None:
                watched.keep(model, forget)
        if watched is not None:
            watched.rewind(model)
        return model.eval()

    def _terms(self, problem: Problem, task: Classification, run: Run) -> list[Term]:
        def divergence(model: nn.Module, batch: Batch, original: Tensor) -> Tensor:
            return softened_divergence(task.outputs(model, batch), original, self.temperature)

        def both(model: nn.Module, batch: Batch, original: Tensor) -> Tensor:
            logits = task.outputs(model, batch)
            error = F.cross_entropy(logits, batch["labels"], reduction="none")
            divergence = softened_divergence(logits, original, self.temperature)
            return self.retain_weight * error + self.distillation_weight * divergence

        forget, retain = cast(MapDataset, problem.forget), cast(MapDataset, problem.retain)
        known = [logits_of(run, problem.model, task, each) for each in (forget, retain)]
        return [
            Term(forget, divergence, weight=-1.0, batch_size=self.forget_batch_size, reference=known[0]),
            Term(retain, both, batch_size=self.batch_size, reference=known[1]),
        ]


class _Rewind:
    """The models after each epoch, and how far each errs on the forget set."""

    def __init__(self, task: Classification, run: Run, holdout: MapDataset, weights: Tensor) -> None:
        self.task, self.run, self.holdout = task, run, holdout
        self.weights = weights  # (holdout,) that add up to 1
        self.kept: list[tuple[float, dict[str, Tensor]]] = []

    @classmethod
    def prepare(cls, problem: Problem, task: Classification, run: Run) -> "_Rewind":
        """Weigh held-out examples so that each class has the share that it has in the forget set.

        Raises:
            MissingNeedError: A class of the forget set does not occur in the held-out data.
        """
        holdout = cast(MapDataset, problem.holdout)
        asked = task.labels_of(cast(MapDataset, problem.forget)).bincount(minlength=task.classes)
        there = task.labels_of(holdout)
        found = there.bincount(minlength=task.classes)
        absent = [label for label in range(task.classes) if asked[label] and not found[label]]
        if absent:
            raise MissingNeedError(
                f"SCRUB(rewind=True) compares with held-out examples of the classes of the forget set, and the holdout "
                f"has none of class {absent[0]}; pass a `holdout=` that has, or leave out rewind"
            )
        shares = asked.double() / asked.sum() / found.clamp(min=1)
        return cls(task, run, holdout, shares[there])

    def keep(self, model: nn.Module, forget: MapDataset) -> None:
        error = 1 - float(self._right(model, forget).mean())
        self.kept.append((error, {name: each.detach().cpu().clone() for name, each in model.state_dict().items()}))
        self.run.phases[-1].measured["forget_error"] = error

    def rewind(self, model: nn.Module) -> None:
        """Put back the epoch that is nearest to the reference; of several the last."""
        reference = 1 - float((self.weights * self._right(model, self.holdout)).sum())
        epochs = range(len(self.kept), 0, -1)
        chosen = min(epochs, key=lambda epoch: abs(self.kept[epoch - 1][0] - reference))
        model.load_state_dict(self.kept[chosen - 1][1])
        self.run.phases[-1].measured |= {"reference_error": reference, "rewound_to_epoch": float(chosen)}

    def _right(self, model: nn.Module, dataset: MapDataset) -> Tensor:
        return torch.cat(over_batches(self.run, model, dataset, lambda *seen: self.task.quality(*seen)["accuracy"]))
