"""One phase under way: step after step, with what is kept of it on the way."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from expunge.errors import DivergedError
from expunge.tasks import Batch
from expunge.training.batches import Plan, Request, stream
from expunge.training.checkpoint import PhaseRecord
from expunge.training.conduct import Conduct, ScaledGradient
from expunge.training.divergence import require_finite_weights, require_sound
from expunge.training.memory import MemoryWatch, recomputing
from expunge.training.objective import Optimizer, Term
from expunge.training.progress import Bar, bar
from expunge.training.seeds import at_places, derive, seed_globals
from expunge.training.sharding import Shards

if TYPE_CHECKING:
    from expunge.training.run import Run

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


class Loop:
    """One phase under way."""

    def __init__(
        self,
        run: "Run",
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
        self.last: list[tuple[Request, Batch]] = []
        self.recorder: StepRecorder | None = None
        self.shards: Shards | None = None

    def run(self, watch: Watch | None, recording: Recording | None) -> PhaseRecord:
        """Take the steps that are left, from a checkpoint where there is one, and bring the model to its end."""
        complete = self._restore()
        if not complete:
            self._train(watch, recording)
            self._save(complete=True)
        return self.record

    def _restore(self) -> bool:
        model = self.model.to(self.run_.device)
        if self.run_.checkpoints is None:
            return False
        saved = self.run_.checkpoints.load(
            self.index, self.record.name, self._plan_in_words(), model, self.optimizer, self.accelerator.scaler
        )
        if saved is None:
            return False
        self.record, complete = saved
        return complete

    def _train(self, watch: Watch | None, recording: Recording | None) -> None:
        plan = Plan(
            self.terms,
            self.steps,
            self.seed,
            self.run_.execution.micro_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            even=self.accelerator.is_fsdp2,
            passes=self.conduct.passes,
        )
        self.scaled = self.conduct.scaled(self.model)
        with recomputing(self.model) if self.run_.execution.gradient_checkpointing else nullcontext():
            wrapped, stepper = self._prepared()
            self.conduct.set_mode(wrapped)
            if recording is not None:
                self.recorder = recording(self.model, self.optimizer, self.record.steps)
            try:
                if self.recorder is not None:
                    self.recorder.start()
                self._steps(plan, wrapped, stepper, watch)
            finally:
                if self.recorder is not None:
                    self.recorder.stop()
            self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
            self._gather()
            self.model.to(self.run_.device)
        require_sound(self.model, self.record, self._last_objective)

    def _prepared(self) -> tuple[nn.Module, Any]:
        """The model as it is trained, and what steps."""
        # Accelerate leaves a model alone that it prepared before, and so without autocast where that was taken off.
        vars(self.model).pop("_is_accelerate_prepared", None)
        if self.accelerator.is_fsdp2:
            self.shards = Shards(self.accelerator, self.model, self.optimizer, self.settings)
            return self.shards.trained, self.shards.stepper
        return cast("tuple[nn.Module, Any]", self.accelerator.prepare(self.model, self.optimizer))

    def _gather(self) -> None:
        """Give the model the weights of its shards, where there are any."""
        if self.shards is not None:
            self.shards.gather_model()

    def _steps(self, plan: Plan, wrapped: nn.Module, stepper: Any, watch: Watch | None) -> None:
        memory = MemoryWatch(self.run_.device)
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
                stop = watch is not None and self._asked(watch)
                self.conduct.set_mode(wrapped)
                if stop:
                    break
                if self.record.steps < self.steps and self._is_save_due(now - last_saved):
                    self._collect_losses(display)
                    self._save(complete=False)
                    last_saved = time.monotonic()
                last_timed = time.monotonic()
            self._collect_losses(display)

    def _asked(self, watch: Watch) -> bool:
        self._gather()
        return bool(watch(self.record.steps))

    def _step(self, model: nn.Module, stepper: Any, requests: list[tuple[Request, Batch]]) -> None:
        step = self.record.steps
        seed_globals(self.seed, "step", step, self.accelerator.process_index)
        factor = self.settings.schedule.factor(step / self.steps)
        stepping = self.optimizer if self.shards is None else self.shards.optimizer
        for group in stepping.param_groups:
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
        self.last = requests

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
        recorded = self._recorded(request, term.weight / request.step_examples)
        with recorded, at_places(request.places, request.own_examples):
            seen = moved if term.augment is None else term.augment(moved)
            values = term.losses(model, seen, request.positions)
            share = (0.0 if request.idle else term.weight) * values.sum() / request.step_examples
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
        display.advance(len(losses), "" if self.conduct.confidential else f"loss {losses[-1]:.4g}")
        for offset, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the objective of phase {self.record.name!r} became {loss} at step "
                    f"{self.record.steps - len(losses) + offset + 1}; lower the learning rate, or set clip_norm"
                )
        self.record.history += [] if self.conduct.confidential else losses
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
            self._gather_for_checkpoint(complete=complete)
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

    def _gather_for_checkpoint(self, *, complete: bool) -> None:
        if complete:
            return
        self._gather()
        if self.shards is not None:
            self.shards.gather_optimizer()
        require_finite_weights(self.model, self.record)

    def _last_objective(self) -> float:
        total = torch.zeros((), device=self.run_.device)
        for request, batch in self.last:
            if not request.idle:
                term = self.terms[request.term]
                values = term.losses(self.model, self.run_.to_device(batch), request.positions)
                total += values.sum() / request.step_examples
        # All processes have the same weights but each its own examples: all are to end here, or none.
        return float(cast(Tensor, self.accelerator.reduce(total, reduction="sum")))

    def _plan_in_words(self) -> str:
        terms = [(term.length, term.batch_size, term.weight) for term in self.terms]
        return f"{self.steps} steps, {self.settings}, terms {terms}, {self.conduct.in_words()}"
