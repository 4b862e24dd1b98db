"""UNSIR: learn noise that a class's weights cannot abide, damage the model with it, and repair the rest."""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.data import MapDataset, subset
from expunge.errors import ExpungeWarning
from expunge.methods._noise import NoiseImages, error_term, mean_error
from expunge.methods._retained import balanced_subset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Schedule, Term


class Noise(StrEnum):
    """What stands in for the forget class while the model is impaired."""

    LEARNED = "learned"
    RANDOM = "random"
    ZERO = "zero"


@dataclass(frozen=True)
class UNSIR(Method):
    """Forget whole classes without reading a single one of their examples.

    Noise images are learned for each forget class so that the original, frozen and in evaluation mode, errs on them
    as much as possible. The model is then trained on that noise, labelled with its own class, together with a small
    part of the retain set (impair), and on that part alone (repair).

    Args:
        noise_images: Noise images a class.
        noise_steps: Steps of learning the noise.
        noise_learning_rate: Of Adam on the noise. Default .1 (published notebook).
        noise_penalty: Weight of the noise's mean square per input element, which weighs the same at every resolution.
            The notebook's .1 on the sum over 3 x 32 x 32 equals 307.2 here.
        noise: `random` (standard normal) and `zero` are controls that skip the learning.
        noise_repeats: How often each noise image appears in the impair epoch.
        retain_per_class: Retained examples of each class.
        impair_learning_rate: Of Adam.
        impair_epochs: Passes over noise and retained examples.
        repair_learning_rate: Of Adam.
        repair_epochs: Passes over the retained examples.
        repair_schedule: Of the learning rate of the repair. The published one is constant.
        batch_size: Examples a step. The published notebook has 256.

    The preset `paper` has the published settings. The defaults were chosen by hand; `docs/unsir.md` says how
    and what they trade.
    """

    needs: ClassVar = frozenset({Need.CLASSES, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Tarun et al. 2023 (arXiv 2111.08947)"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)
    presets: ClassVar = MappingProxyType(
        {
            "paper": {
                "noise_images": 256,
                "noise_steps": 40,
                "noise_penalty": 307.2,
                "noise_repeats": 20,
                "retain_per_class": 1000,
                "impair_learning_rate": 0.02,
                "repair_learning_rate": 0.01,
                "repair_schedule": Schedule.CONSTANT,
                "batch_size": 256,
            },
            "tuned": {},
        }
    )

    noise_images: int = 16
    noise_steps: int = 40
    noise_learning_rate: float = 0.1
    noise_penalty: float = 10.0
    noise: Noise = Noise.LEARNED
    noise_repeats: int = 2
    retain_per_class: int = 500
    impair_learning_rate: float = 0.004
    impair_epochs: float = 1
    repair_learning_rate: float = 0.002
    repair_epochs: float = 1
    repair_schedule: Schedule = Schedule.COSINE
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "noise_images", "noise_steps", "noise_repeats", "retain_per_class", "batch_size")
        require_positive(self, "noise_learning_rate", "impair_learning_rate", "impair_epochs")
        require_positive(self, "repair_learning_rate", "repair_epochs")
        require_at_least(self, 0, "noise_penalty")
        require_one_of(self, "noise", Noise)
        require_one_of(self, "repair_schedule", Schedule)

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Make noise, impair, repair."""
        task = cast(Classification, problem.task)
        kept = cast(MapDataset, problem.retain)
        retain = balanced_subset(task, kept, self.retain_per_class, run.generator("retain subset"))
        noise = self._noise(problem, run, task, retain)
        model = run.copy(problem.model)
        run.train(
            "impair",
            model,
            [Term((noise, retain), task.losses, batch_size=self.batch_size)],
            Optimizer(self.impair_learning_rate),
            epochs=self.impair_epochs,
        )
        run.train(
            "repair",
            model,
            [Term(retain, task.losses, batch_size=self.batch_size)],
            Optimizer(self.repair_learning_rate, schedule=self.repair_schedule),
            epochs=self.repair_epochs,
        )
        return model.eval()

    def _noise(self, problem: Problem, run: Run, task: Classification, retain: MapDataset) -> MapDataset:
        shape = task.collate([retain[0]])["inputs"].shape[1:]
        labels = torch.tensor(problem.classes).repeat_interleave(self.noise_images)
        start = torch.randn((len(labels), *shape), generator=run.generator("noise"))
        images = NoiseImages(torch.zeros_like(start) if self.noise is Noise.ZERO else start.clone())
        if self.noise is Noise.LEARNED:
            run.train(
                "noise",
                images,
                [self._error_maximisation(run.frozen(problem.model), task, labels)],
                Optimizer(self.noise_learning_rate, Algorithm.ADAM),
                steps=self.noise_steps,
            )
            before, after = (
                mean_error(run, problem.model, TensorDataset(*task.fields(values, labels)))
                for values in (start, images.values.detach().cpu())
            )
            self._warn_if_inert(before, after)
        learned = TensorDataset(*task.fields(images.values.detach().cpu(), labels))
        return subset(learned, torch.arange(len(labels)).repeat(self.noise_repeats))

    def _warn_if_inert(self, before: float, after: float) -> None:
        if after <= before:
            warnings.warn(
                f"the noise learned nothing: the original's cross-entropy on it is {after:.2f} nats, and was "
                f"{before:.2f} on the random start; lower noise_penalty ({self.noise_penalty:g}) or raise noise_steps "
                f"({self.noise_steps})",
                ExpungeWarning,
                stacklevel=2,
            )

    def _error_maximisation(self, original: nn.Module, task: Classification, labels: Tensor) -> Term:
        return error_term(original, task, labels, weight=-1.0, penalty=self.noise_penalty)
