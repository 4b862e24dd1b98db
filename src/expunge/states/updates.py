"""What each step of training did to the weights, and which examples took part in it."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from expunge.data import MapDataset, subset
from expunge.errors import ForgetSetError, SettingError, StateError
from expunge.states.base import digest_state
from expunge.states.rows import RowLedger, row_fields
from expunge.storage import digest_model
from expunge.tasks import Task
from expunge.training import PhaseRecord, Run, Supervised, reproducible

Update = Mapping[str, Tensor]
"""What a step added to each parameter, by name."""


@dataclass(frozen=True)
class UpdateLog:
    """The parameter updates of all steps in which a watched example took part.

    It is as large as the model, once for each such step. Statistics of BatchNorm are left out: to subtract what single
    batches did to a running variance can make it negative. Public code does so.

    Args:
        rows: Keyed digests of the watched rows.
        digests: (watched,) int64, the digest of each.
        members: (pairs,) int64, which of the watched rows took part,
        steps: (pairs,) int64, in which step.
        updates: By step.
        model: Digest of the model that training or the last deletion gave.
    """

    kind: ClassVar[str] = "updates"

    rows: RowLedger
    digests: Tensor
    members: Tensor
    steps: Tensor
    updates: Mapping[int, Update]
    model: str

    @classmethod
    def record(cls, model: nn.Module, task: Task, dataset: MapDataset, **settings: Any) -> Self:
        """Refused: what steps did cannot be had of a model that is trained already."""
        raise SettingError(
            "updates are recorded while a model is trained: `model, state = log_updates(recipe, dataset, seed)`"
        )

    def require_model(self, model: nn.Module) -> None:
        """Raise StateError unless this is the log of the model as it is."""
        if digest_model(model) != self.model:
            raise StateError(
                "the log of updates belongs to another model, or to this one before a deletion; pass model and state "
                "that were trained, saved or returned together"
            )

    def without(self, task: Task, forget: MapDataset) -> "tuple[UpdateLog, list[int]]":
        """The log without these rows and without the steps that they took part in, and those steps.

        Raises:
            UnknownRowError: A row was not watched, or was deleted before.
        """
        inputs, others = row_fields(task, forget)
        rows = self.rows.remove(inputs, others)
        goes = torch.zeros(len(self.digests), dtype=torch.bool)
        for digest in self.rows.digests(inputs, others).tolist():
            goes[((self.digests == digest) & ~goes).nonzero()[0]] = True
        touched = self.steps[goes[self.members]].unique()
        left = ~torch.isin(self.steps, touched) & ~goes[self.members]
        renumbered = (~goes).cumsum(0) - 1
        spent = set(touched.tolist())
        log = replace(
            self,
            rows=rows,
            digests=self.digests[~goes],
            members=renumbered[self.members[left]],
            steps=self.steps[left],
            updates={step: update for step, update in self.updates.items() if step not in spent},
        )
        return log, sorted(spent)

    def bound_to(self, model: nn.Module) -> "UpdateLog":
        """The same log for a model after a deletion."""
        return replace(self, model=digest_model(model))

    def digest(self) -> str:
        """SHA-256 over everything the state holds."""
        return digest_state(self)

    def tensors(self) -> dict[str, Tensor]:
        """Digests of rows, who took part when, and the updates."""
        found = {"digests": self.digests, "members": self.members, "steps": self.steps, **self.rows.tensors()}
        for step, update in self.updates.items():
            found |= {f"update.{step}.{name}": each for name, each in update.items()}
        return found

    def notes(self) -> dict[str, Any]:
        """The model."""
        return {"model": self.model}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], notes: dict[str, Any]) -> Self:
        """Make a state of what `tensors` and `notes` gave."""
        updates: dict[int, dict[str, Tensor]] = {}
        for name, each in tensors.items():
            if name.startswith("update."):
                _, step, parameter = name.split(".", 2)
                updates.setdefault(int(step), {})[parameter] = each
        named = (tensors[name] for name in ("digests", "members", "steps"))
        return cls(RowLedger.restore(tensors), *named, updates=updates, model=notes["model"])


def log_updates(
    recipe: Supervised, dataset: MapDataset, seed: int, *, watched: Sequence[int] | Tensor | None = None
) -> tuple[nn.Module, UpdateLog]:
    """Train by a recipe and keep what each step did that a watched example took part in.

    Args:
        recipe: How.
        dataset: The training set.
        seed: Seed of everything random.
        watched: Positions of the examples that may have to be forgotten. By default all, and then every step is kept.

    Returns:
        The model, which has the bits that it would have without a log, and the log.

    Raises:
        ForgetSetError: A position lies outside the dataset.
    """
    positions = torch.arange(len(dataset)) if watched is None else torch.as_tensor(watched).unique()
    if len(positions) == 0 or not 0 <= int(positions[0]) <= int(positions[-1]) < len(dataset):
        raise ForgetSetError(
            f"watched must be one position or more of the dataset (0 to {len(dataset) - 1}); leave it out for all"
        )
    recorders: list[_Recorder] = []

    def recording(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> "_Recorder":
        recorders.append(_Recorder(model, optimizer, positions))
        return recorders[-1]

    with reproducible(recipe.execution.threads):
        run = Run(recipe.task, seed, recipe.execution)
        model = recipe.fit(dataset, run, recording)
        inputs, others = row_fields(recipe.task, subset(dataset, positions))
    rows = RowLedger.of(inputs, others)
    (recorder,) = recorders
    members, steps = (torch.tensor(each, dtype=torch.long) for each in (recorder.members, recorder.steps))
    log = UpdateLog(rows, rows.digests(inputs, others), members, steps, recorder.updates, digest_model(model))
    return model, log


def subtract(model: nn.Module, log: UpdateLog, steps: Sequence[int], run: Run) -> None:
    """Take what these steps added from the weights of a model, in place, as a phase of the run."""
    started = time.monotonic()
    record = PhaseRecord(name="subtract", steps=len(steps))
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for step in steps:
            update = log.updates[step]
            for name, each in update.items():
                weights[name].sub_(each.to(weights[name]))
            record.history.append(sum(float(each.double().square().sum()) for each in update.values()) ** 0.5)
    record.seconds = time.monotonic() - started
    run.phases.append(record)


class _Recorder:
    """Looks on while a model is trained; see `expunge.training.StepRecorder`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, watched: Tensor) -> None:
        self.model, self.optimizer, self.watched = model, optimizer, watched
        self.members: list[int] = []
        self.steps: list[int] = []
        self.updates: dict[int, dict[str, Tensor]] = {}
        self.step = 0
        self.before: dict[str, Tensor] | None = None
        self.handles: list[RemovableHandle] = []

    def start(self) -> None:
        self.handles.append(self.optimizer.register_step_post_hook(lambda *_: self._stepped()))

    @contextmanager
    def examples(self, ids: Tensor, weights: Tensor) -> Generator[None]:
        places = torch.searchsorted(self.watched, ids).clamp(max=len(self.watched) - 1)
        seen = places[self.watched[places] == ids].tolist()
        self.members += seen
        self.steps += [self.step] * len(seen)
        if seen and self.before is None:
            self.before = self._weights()
        yield

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _stepped(self) -> None:
        if self.before is not None:
            after = self._weights()
            self.updates[self.step] = {name: each - self.before[name] for name, each in after.items()}
        self.before = None
        self.step += 1

    def _weights(self) -> dict[str, Tensor]:
        return {name: each.detach().cpu().clone() for name, each in self.model.named_parameters()}
