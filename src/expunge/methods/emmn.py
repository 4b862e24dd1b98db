"""EMMN: forget classes with noise alone, learned from the model, where no data are left."""

import warnings
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.data import MapDataset, subset
from expunge.errors import ExpungeWarning, ForgetSetError, SettingError, ShapeError
from expunge.methods._noise import NoiseImages, error_term, mean_error
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class EMMN(Method):
    """Forget whole classes from the model alone: no forgotten example, no retained one.

    Two kinds of noise are learned against the original, frozen and in evaluation mode: for each forget class, noise on
    which it errs as much as possible; for each class that stays, noise that it is sure of. The model is trained on
    both, each labelled with its own class (impair), and then on the noise of the kept classes alone (repair).

    Noise that a model is sure of need not look like data, so what the kept classes lose is not bounded; measure it.
    BatchNorm keeps the original's statistics, since those of noise would be put in place of those of data.

    Args:
        noise_images: Noise images a class. Default ours.
        maximise_steps: Steps of learning the noise of forget classes. Default 25 (code).
        minimise_steps: Steps of learning the noise of kept classes. Default 30 (code).
        noise_learning_rate: Of Adam on the noise. Default .1 (code).
        noise_penalty: Weight of the forget noise's mean square per input element. Default .1 (code).
        noise_repeats: How often each noise image appears in an epoch. Default ours; the code has 80.
        learning_rate: Of Adam on the model. Default ours; the code has 1e-4.
        impair_epochs: Passes over the noise of all classes. Default 1 (code: two passes in all).
        repair_epochs: Passes over the noise of the kept classes. Default 1.
        batch_size: Examples a step. Default ours.
        input_shape: Shape of one input, as in `(3, 32, 32)`. By default that of an example, where the problem holds
            any, or the width of a model whose first layer is linear.

    The preset `paper` has the settings of the public code.
    """

    needs: ClassVar = frozenset({Need.CLASSES})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Chundawat et al. 2023, Zero-Shot Machine Unlearning (arXiv 2201.05629), error-minimising noise"
    maturity: ClassVar = Maturity.EXPERIMENTAL
    tasks: ClassVar = (Classification,)
    presets: ClassVar = MappingProxyType({"paper": {"noise_repeats": 80, "learning_rate": 1e-4}})

    noise_images: int = 64
    maximise_steps: int = 25
    minimise_steps: int = 30
    noise_learning_rate: float = 0.1
    noise_penalty: float = 0.1
    noise_repeats: int = 10
    learning_rate: float = 1e-3
    impair_epochs: float = 1
    repair_epochs: float = 1
    batch_size: int = 64
    input_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "noise_images", "maximise_steps", "minimise_steps", "noise_repeats", "batch_size")
        require_positive(self, "noise_learning_rate", "learning_rate", "impair_epochs", "repair_epochs")
        require_at_least(self, 0, "noise_penalty")
        if self.input_shape is not None and (not self.input_shape or any(side < 1 for side in self.input_shape)):
            raise SettingError(
                f"input_shape must be the sides of one input, such as (3, 32, 32), not {self.input_shape}"
            )

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Learn the noise, impair, repair."""
        task = cast(Classification, problem.task)
        kept = [label for label in range(task.classes) if label not in problem.classes]
        if not kept:
            raise ForgetSetError("every class is to be forgotten: forgetting everything means discarding the model")
        shape = self.input_shape or shape_of_inputs(problem)
        forgotten = self._noise("maximise", problem, run, shape, problem.classes, weight=-1.0)
        retained = self._noise("minimise", problem, run, shape, kept, weight=1.0)
        model, optimizer = run.copy(problem.model), Optimizer(self.learning_rate)
        for phase, data, epochs in (
            ("impair", (forgotten, retained), self.impair_epochs),
            ("repair", (retained,), self.repair_epochs),
        ):
            term = Term(data, task.losses, batch_size=self.batch_size)
            run.train(phase, model, [term], optimizer, epochs=epochs, batch_statistics=False)
        return model.eval()

    def _noise(
        self, phase: str, problem: Problem, run: Run, shape: tuple[int, ...], classes: "list[int] | tuple[int, ...]",
        *, weight: float,
    ) -> MapDataset:  # fmt: skip
        """Noise for these classes, each image `noise_repeats` times; `weight` is as in `error_term`."""
        task = cast(Classification, problem.task)
        labels = torch.tensor(classes).repeat_interleave(self.noise_images)
        start = torch.randn((len(labels), *shape), generator=run.generator("noise", phase))
        images = NoiseImages(start.clone())
        penalty = self.noise_penalty if weight < 0 else 0.0
        term = error_term(run.frozen(problem.model), task, labels, weight=weight, penalty=penalty)
        steps = self.maximise_steps if weight < 0 else self.minimise_steps
        run.train(phase, images, [term], Optimizer(self.noise_learning_rate, Algorithm.ADAM), steps=steps)
        learned = TensorDataset(*task.fields(images.values.detach().cpu(), labels))
        self._warn_if_inert(phase, run, problem.model, TensorDataset(*task.fields(start, labels)), learned, weight)
        return subset(learned, torch.arange(len(labels)).repeat(self.noise_repeats))

    def _warn_if_inert(
        self, phase: str, run: Run, model: nn.Module, start: MapDataset, learned: MapDataset, weight: float
    ) -> None:
        before, after = (mean_error(run, model, noise) for noise in (start, learned))
        if weight * (after - before) >= 0:
            warnings.warn(
                f"the noise learned nothing while it was to {phase} the error: the original's cross-entropy on it is "
                f"{after:.3g} nats, and was {before:.3g} on the random start; raise {phase}_steps, or change "
                f"noise_learning_rate ({self.noise_learning_rate:g}) or noise_penalty ({self.noise_penalty:g})",
                ExpungeWarning,
                stacklevel=2,
            )


def shape_of_inputs(problem: Problem) -> tuple[int, ...]:
    """Shape of one input: of an example, where the problem holds one, else of a model whose first layer is linear.

    Raises:
        ShapeError: Neither tells.
    """
    for name in ("retain", "holdout", "surrogate", "forget"):
        dataset = problem.datasets().get(name)
        if dataset is not None:
            inputs: Tensor = problem.task.collate([dataset[0]])["inputs"]
            return tuple(inputs.shape[1:])
    layers = [layer for layer in problem.model.modules() if next(layer.parameters(recurse=False), None) is not None]
    if layers and isinstance(layers[0], nn.Linear):
        return (layers[0].in_features,)
    raise ShapeError(
        "the shape of an input cannot be told without data from a model whose first layer is not linear; pass it, as "
        "in EMMN(input_shape=(3, 32, 32))"
    )
