"""The one optimisation loop: a run is a seed, a machine, and a sequence of named phases."""

import copy
import math
import operator
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from expunge.errors import SettingError
from expunge.tasks import Batch, Task
from expunge.training.checkpoint import CheckpointFolder, PhaseRecord
from expunge.training.conduct import Conduct
from expunge.training.execution import Execution
from expunge.training.loop import Loop, Recording, Watch
from expunge.training.objective import Optimizer, Term
from expunge.training.seeds import generator


class Run:
    """Carries out phases for a method: each with progress, history, cost, checkpoint and resume.

    The order of examples and all randomness of a step are functions of (seed, phase, step) alone, so a run that was
    killed continues to the bits it would have reached.

    Args:
        task: How examples become batches.
        seed: Seed of everything random.
        execution: Device, precision, memory, progress.
        checkpoints: Where phases are saved, if anywhere.

    Raises:
        SettingError: The seed is not a whole number.
    """

    def __init__(
        self,
        task: Task,
        seed: int = 0,
        execution: Execution | None = None,
        checkpoints: CheckpointFolder | None = None,
    ) -> None:
        self.task = task
        self.seed = _whole(seed)
        self.execution = execution or Execution()
        self.checkpoints = checkpoints
        self.accelerator = self.execution.accelerator()
        self.phases: list[PhaseRecord] = []
        self._carried: torch.optim.Optimizer | None = None

    @property
    def carried(self) -> torch.optim.Optimizer | None:
        """The optimiser of the last phase that was to hand its state on."""
        return self._carried

    @property
    def device(self) -> torch.device:
        """Where models and batches live."""
        return self.accelerator.device

    @property
    def conditions(self) -> dict[str, Any]:
        """What the bits of a result depend on besides the problem, the method and the seed."""
        on_cuda = self.device.type == "cuda"
        spread = {"sharded": True} if self.accelerator.is_fsdp2 else {}
        return spread | {
            "device": torch.cuda.get_device_name(self.device) if on_cuda else str(self.device),
            "precision": self.execution.precision,
            "channels_last": self.execution.channels_last,
            "micro_batch_size": self.execution.micro_batch_size,
            "processes": self.accelerator.num_processes,
            "threads": None if on_cuda else torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }

    def copy(self, model: nn.Module) -> nn.Module:
        """A trainable copy on the device, to be changed and returned by a method.

        Every parameter of the copy takes a gradient, those too that the caller froze with `requires_grad_(False)`:
        unless they were frozen while the model was first trained, they hold what the forget set taught them. A
        method that is to leave some alone freezes them in the copy. What the task calls `fixed` no phase trains.
        """
        duplicate = copy.deepcopy(model).requires_grad_(True).to(self.device)
        return _channels_last(duplicate) if self.execution.channels_last else duplicate

    def frozen(self, model: nn.Module) -> nn.Module:
        """A copy on the device in evaluation mode whose parameters take no gradient."""
        return self.copy(model).requires_grad_(False).eval()

    def generator(self, *labels: str | int) -> torch.Generator:
        """A CPU generator for one purpose within this run."""
        return generator(self.seed, *labels)

    def to_device(self, batch: Batch) -> Batch:
        """A batch where the model is."""
        moved = send_to_device(batch, self.device)
        return tree_map(_images_channels_last, moved) if self.execution.channels_last else moved

    def train(
        self,
        phase: str,
        model: nn.Module,
        terms: Sequence[Term],
        optimizer: Optimizer,
        *,
        steps: int | None = None,
        epochs: float | None = None,
        passes: Sequence[int] | None = None,
        batch_statistics: bool = True,
        gradient_scale: Mapping[str, Tensor] | None = None,
        carry_optimizer: bool = False,
        watch: Watch | None = None,
        recording: Recording | None = None,
        confidential: bool = False,
    ) -> PhaseRecord:
        """Train `model` in place until the sum of `terms` has been minimised for so many steps.

        Args:
            phase: Name, unique within the run.
            model: What is trained: the parameters that require a gradient and that the task does not call `fixed`. A
                normalisation layer whose parameters are all frozen keeps its statistics too.
            terms: What is minimised.
            optimizer: How.
            steps: Number of optimiser steps; or
            epochs: Passes over the first term, of which fractions count; or
            passes: Numbers of terms that take turns, each for one pass over its data: (0, 1, 0, 1) are two rounds of
                two terms. Otherwise every step minimises the sum of all.
            batch_statistics: Train mode (dropout on, BatchNorm uses and updates its statistics); otherwise
                evaluation mode.
            gradient_scale: By name of a parameter, a factor on the gradient of each of its weights. A weight whose
                factor is 0 stays as it is to the bit: weight decay and momentum do not move it either.
            carry_optimizer: Go on with the optimiser's state, such as momentum, of the last phase that was told so,
                and hand it on to the next.
            watch: Called after each step; may end the phase.
            recording: Looks on, example by example; for one term over one dataset, in one process.
            confidential: Neither show nor record the objective: its values are exact figures of models that a guarantee
                does not release.

        Raises:
            DivergedError: The objective or the weights became NaN or infinite, be it with the last step.
        """
        conduct = Conduct(batch_statistics, passes, gradient_scale or {}, carry_optimizer, confidential)
        conduct.require_whole_model(phase, parted=self.accelerator.is_fsdp2)
        length = conduct.steps(phase, terms)
        if length is None:
            length = steps if steps is not None else (epochs or 0) * terms[0].steps_per_epoch
        if not 0 < length < math.inf:
            raise SettingError(f"phase {phase!r} has {length} steps; give `steps` or `epochs` so that there is one")
        total = math.ceil(length)
        smallest = min(term.length // term.steps_per_epoch for term in terms)
        if smallest < self.accelerator.num_processes:
            raise SettingError(
                f"phase {phase!r} has a batch of {smallest}, which cannot be parted among "
                f"{self.accelerator.num_processes} processes; raise batch_size, or use fewer processes"
            )
        if recording is not None:
            self._require_recordable(phase, terms)
        with _still(model, self.task.fixed(model)):
            loop = Loop(self, phase, model, terms, optimizer, total, conduct)
            record = loop.run(watch, recording)
        self.phases.append(record)
        if carry_optimizer:
            self._carried = loop.optimizer
        return record

    def _require_recordable(self, phase: str, terms: Sequence[Term]) -> None:
        if self.execution.precision == "fp16" or self.accelerator.num_processes > 1:
            raise SettingError(f"phase {phase!r} is recorded: use one process, and bf16 or full precision, not fp16")
        if len(terms) > 1 or len(terms[0].parts) > 1:
            raise SettingError(f"phase {phase!r} is recorded, for which it must have one term over one dataset")


@contextmanager
def _still(model: nn.Module, names: Sequence[str]) -> Generator[None]:
    """Keep these parameters out of optimiser, gradient and weight decay; afterwards they take gradients as before."""
    fixed = [each for name, each in model.named_parameters() if name in names and each.requires_grad]
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in fixed:
            parameter.requires_grad_(True)


def _whole(seed: int) -> int:
    try:
        return operator.index(seed)
    except TypeError as error:
        raise SettingError(f"seed must be a whole number, not {seed!r}") from error


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownVariableType]


def _images_channels_last(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.ndim == 4:
        return leaf.contiguous(memory_format=torch.channels_last)
    return leaf
