"""The one optimisation loop: a run is a seed, a machine, and a sequence of named phases."""

import copy
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from expunge.errors import DivergedError, SettingError
from expunge.settings import require_at_least, require_one_of, require_whole
from expunge.tasks import Batch, Task
from expunge.training.batches import Plan, Request, stream
from expunge.training.checkpoint import CheckpointFolder, PhaseRecord
from expunge.training.conduct import Conduct, ScaledGradient
from expunge.training.objective import Optimizer, Term
from expunge.training.progress import Bar, bar
from expunge.training.seeds import derive, generator, seed_globals

Watch = Callable[[int], bool | None]
"""Called after each step with the number of steps taken; returns True to end the phase there."""


class StepRecorder(Protocol):
    """What looks on, example by example, while a phase trains; a gradient log does."""

    def start(self) -> None:
        """Before the first step."""
        ...

    def examples(self, ids: Tensor, weights: Tensor) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a batch.

        Args:
            ids: (batch,) positions in the data of the term.
            weights: (batch,) of each example's loss in the loss of the step.
        """
        ...

    def stop(self) -> None:
        """After the last step, or an error."""
        ...


Recording = Callable[[nn.Module, torch.optim.Optimizer, int], StepRecorder]
"""Makes what looks on, of the model, its optimiser, and the steps taken before where a killed phase goes on."""

_STEPS_BETWEEN_LOSS_CHECKS = 16


@dataclass(frozen=True)
class Execution:
    """How computations run; none of it changes what is computed beyond rounding.

    Args:
        device: `cpu` to stay off an accelerator; by default the one that is there.
        precision: `fp16` or `bf16` for mixed precision; parameters stay in float32.
        channels_last: Keep images and convolution weights in channels-last memory.
        micro_batch_size: Most examples in one forward pass; larger batches are accumulated. In training mode
            BatchNorm then sees the smaller batches.
        workers: Background processes that fetch examples; of use where reading an example is slow.
        threads: CPU threads of torch while a run lasts; the process's own number is restored afterwards. By default
            that number stays. One thread is often fastest for tiny models, and where a machine is busy: threads that
            wait for one another spin. Another number gives other bits, for sums are then added up in another order.
        checkpoint_seconds: Time between checkpoints within a phase.
        progress: Show progress bars on a terminal.
    """

    device: Literal["cpu"] | None = None
    precision: Literal["no", "fp16", "bf16"] = "no"
    channels_last: bool = False
    micro_batch_size: int | None = None
    workers: int = 0
    threads: int | None = None
    checkpoint_seconds: float = 30.0
    progress: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_one_of(self, "device", (None, "cpu"))
        require_one_of(self, "precision", ("no", "fp16", "bf16"))
        require_whole(self, "micro_batch_size", "threads")
        require_whole(self, "workers", least=0)
        require_at_least(self, 0, "checkpoint_seconds")

    def accelerator(self) -> Accelerator:
        """An accelerator of these settings; under `accelerate launch` it spans the processes.

        Raises:
            SettingError: This process already computes in another precision or on another device.
        """
        try:
            return Accelerator(mixed_precision=self.precision, cpu=self.device == "cpu")
        except ValueError as error:
            if not AcceleratorState().initialized:
                raise
            raise SettingError(
                f"this process already runs accelerate with other settings ({error}); use the same precision and "
                "device throughout, or start a new process"
            ) from error


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
        return {
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
        method that is to leave some alone freezes them in the copy.
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
    ) -> PhaseRecord:
        """Train `model` in place until the sum of `terms` has been minimised for so many steps.

        Args:
            phase: Name, unique within the run.
            model: What is trained: the parameters that require a gradient. A normalisation layer whose parameters
                are all frozen keeps its statistics too.
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

        Raises:
            DivergedError: The objective became NaN or infinite.
        """
        conduct = Conduct(batch_statistics, passes, gradient_scale or {}, carry_optimizer)
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
        loop = _Loop(self, phase, model, terms, optimizer, total, conduct)
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


class _Loop:
    """One phase under way."""

    def __init__(
        self,
        run: Run,
        phase: str,
        model: nn.Module,
        terms: Sequence[Term],
        optimizer: Optimizer,
        steps: int,
        conduct: Conduct,
    ) -> None:
        self.run_, self.terms, self.steps, self.model = run, terms, steps, model
        self.accelerator, self.settings = run.execution.accelerator(), optimizer
        self.seed = derive(run.seed, "phase", phase)
        self.conduct = conduct
        self.index = len(run.phases)
        self.record = PhaseRecord(name=phase)
        self.optimizer = optimizer.build(parameter for parameter in model.parameters() if parameter.requires_grad)
        if conduct.carry_optimizer and run.carried is not None:
            self.optimizer.load_state_dict(copy.deepcopy(run.carried.state_dict()))
        self.scaled: list[ScaledGradient] = []
        self.pending: list[Tensor] = []
        self.recorder: StepRecorder | None = None

    def run(self, watch: Watch | None, recording: Recording | None) -> PhaseRecord:
        model = self.model.to(self.run_.device)
        saved = None
        if self.run_.checkpoints is not None:
            saved = self.run_.checkpoints.load(
                self.index, self.record.name, self._plan_in_words(), model, self.optimizer, self.accelerator.scaler
            )
        if saved is not None:
            self.record, complete = saved
            if complete:
                return self.record
        plan = Plan(
            self.terms,
            self.steps,
            self.seed,
            self.run_.execution.micro_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.conduct.passes,
        )
        self.scaled = self.conduct.scaled(model)
        wrapped, stepper = cast("tuple[nn.Module, Any]", self.accelerator.prepare(model, self.optimizer))
        self.conduct.set_mode(wrapped)
        if recording is not None:
            self.recorder = recording(model, self.optimizer, self.record.steps)
        try:
            if self.recorder is not None:
                self.recorder.start()
            self._steps(plan, wrapped, stepper, watch)
        finally:
            if self.recorder is not None:
                self.recorder.stop()
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self._save(complete=True)
        return self.record

    def _steps(self, plan: Plan, wrapped: nn.Module, stepper: Any, watch: Watch | None) -> None:
        memory = _MemoryWatch(self.run_.device)
        last_saved = last_timed = time.monotonic()
        enabled = self.run_.execution.progress and self.accelerator.is_local_main_process
        with bar(self.record.name, self.steps, done=self.record.steps, enabled=enabled) as display:
            batches = stream(plan, self.run_.task, self.record.steps, self.run_.execution.workers)
            for requests in batches:
                self._step(wrapped, stepper, requests)
                now = time.monotonic()
                self.record.seconds += now - last_timed
                self.record.peak_memory_bytes = max(self.record.peak_memory_bytes, memory.peak())
                last_timed = now
                if len(self.pending) >= _STEPS_BETWEEN_LOSS_CHECKS:
                    self._collect_losses(display)
                stop = watch is not None and bool(watch(self.record.steps))
                self.conduct.set_mode(wrapped)
                if stop:
                    break
                if self.record.steps < self.steps and self._is_save_due(now - last_saved):
                    self._collect_losses(display)
                    self._save(complete=False)
                    last_saved = time.monotonic()
                last_timed = time.monotonic()
            self._collect_losses(display)

    def _step(self, model: nn.Module, stepper: Any, requests: list[tuple[Request, Batch]]) -> None:
        step = self.record.steps
        seed_globals(self.seed, "step", step, self.accelerator.process_index)
        factor = self.settings.schedule.factor(step / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        total = torch.zeros((), device=self.run_.device)
        for number, (request, batch) in enumerate(requests):
            synchronise = number == len(requests) - 1
            with nullcontext() if synchronise else self.accelerator.no_sync(model):
                total += self._backward(model, request, batch)
        for each in self.scaled:
            each.apply()
        self._clip(model)
        stepper.step()
        stepper.zero_grad()
        for each in self.scaled:
            each.restore()
        self.record.steps += 1
        self.record.examples += sum(
            request.step_examples for request in {request.term: request for request, _ in requests}.values()
        )
        self.pending.append(total)

    def _clip(self, model: nn.Module) -> None:
        norm, value = self.settings.clip_norm, self.settings.clip_value
        if norm is not None:
            self.accelerator.clip_grad_norm_(model.parameters(), norm)
        if value is not None and norm is None:
            self.accelerator.clip_grad_value_(model.parameters(), value)
        elif value is not None:  # the norm had the loss scale of fp16 taken out, which may be done once a step
            nn.utils.clip_grad_value_(model.parameters(), value)

    def _backward(self, model: nn.Module, request: Request, batch: Batch) -> Tensor:
        term = self.terms[request.term]
        moved = self.run_.to_device(batch)
        with self._recorded(request, term.weight / request.step_examples):
            seen = moved if term.augment is None else term.augment(moved)
            values = term.losses(model, seen, request.positions)
            share = term.weight * values.sum() / request.step_examples
            self.accelerator.backward(share * self.accelerator.num_processes)
        return share.detach()

    def _recorded(self, request: Request, weight: float) -> AbstractContextManager[None]:
        if self.recorder is None:
            return nullcontext()
        return self.recorder.examples(request.positions, torch.full((len(request.positions),), weight))

    def _collect_losses(self, display: Bar) -> None:
        if not self.pending:
            return
        summed = cast(Tensor, self.accelerator.reduce(torch.stack(self.pending), reduction="sum"))
        losses = cast(list[float], summed.tolist())
        display.advance(len(losses), f"loss {losses[-1]:.4g}")
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the objective of phase {self.record.name!r} became {loss} at step "
                    f"{self.record.steps - len(losses) + offset + 1}; lower the learning rate, or set clip_norm"
                )
        self.record.history += losses
        self.pending.clear()

    def _is_save_due(self, seconds: float) -> bool:
        if self.run_.checkpoints is None:
            return False
        due = seconds >= self.run_.execution.checkpoint_seconds
        if self.accelerator.num_processes == 1:
            return due
        # Clocks differ: all save, with what that says to one another, or none does.
        votes = cast(Tensor, self.accelerator.reduce(torch.tensor(int(due), device=self.run_.device)))
        return bool(votes)

    def _save(self, *, complete: bool) -> None:
        folder = self.run_.checkpoints
        if folder is not None:
            if self.accelerator.is_main_process:
                folder.save(
                    self.index,
                    self.record,
                    self._plan_in_words(),
                    self.model,
                    self.optimizer,
                    self.accelerator.scaler,
                    complete=complete,
                    keep_optimizer=self.conduct.carry_optimizer,
                )
            self.accelerator.wait_for_everyone()

    def _plan_in_words(self) -> str:
        terms = [(term.length, term.batch_size, term.weight) for term in self.terms]
        return f"{self.steps} steps, {self.settings}, terms {terms}, {self.conduct.in_words()}"


class _MemoryWatch:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return int(self.process.memory_info().rss)


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
