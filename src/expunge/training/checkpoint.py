"""Where a phase stands: model, optimiser and counters in one safetensors file that is whole or absent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from expunge.errors import CheckpointError, SavedModelError
from expunge.storage import read_tensors, remove_partial_files, write_tensors


class PhaseRecord(BaseModel):
    """What a phase did and cost.

    Attributes:
        name: Such as `impair`.
        steps: Optimiser steps taken.
        examples: Examples that passed forward and backward, over all processes.
        seconds: Wall time, without what was lost to a kill.
        peak_memory_bytes: Largest memory seen: allocated on the device, or resident on a CPU (sampled at each step).
        history: The objective at each step.
        measured: What else the phase found, by name.
        warnings: What a reader should know of it.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    history: list[float] = Field(default_factory=list[float])
    measured: dict[str, float] = Field(default_factory=dict[str, float])
    warnings: list[str] = Field(default_factory=list[str])


class _Progress(BaseModel):
    fingerprint: str
    conditions: dict[str, Any] = Field(default_factory=dict[str, Any])
    plan: str
    record: PhaseRecord
    complete: bool
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run, a file a phase.

    Args:
        path: The folder.
        fingerprint: Digest of what the run is; a checkpoint of another run is refused.
        conditions: What else the bits depend on, by name; a checkpoint made under others is refused by name.
    """

    path: Path
    fingerprint: str
    conditions: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def open(self, *, resume: bool) -> None:
        """Prepare the folder; refuse one that already holds checkpoints unless the run is to be resumed."""
        if self.path.is_dir():
            remove_partial_files(self.path)
            if not resume and any(self.path.glob("*.safetensors")):
                raise CheckpointError(
                    f"{self.path} already holds checkpoints; resume that run (resume=True, --resume) or choose "
                    "another folder"
                )

    def load(
        self, index: int, name: str, plan: str, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
    ) -> tuple[PhaseRecord, bool] | None:
        """Put model, optimiser and loss scaler into the state that was saved.

        Returns:
            The record so far and whether the phase was complete, or None where nothing was saved.

        Raises:
            CheckpointError: The file is damaged or belongs to another run.
        """
        file = self._file(index, name)
        if not file.exists():
            return None
        remedy = "delete that folder and start afresh"
        try:
            tensors, metadata = read_tensors(file)
            saved = _Progress.model_validate(metadata)
        except (SavedModelError, ValidationError) as error:
            raise CheckpointError(f"the checkpoint {file} cannot be read ({error}); {remedy}") from error
        if saved.fingerprint != self.fingerprint:
            raise CheckpointError(
                f"the checkpoint {file} belongs to a run with another model, method, seed or data; {remedy}, "
                "or pass what the interrupted run was given"
            )
        changes = _changes(saved.conditions, self.conditions)
        if changes:
            raise CheckpointError(
                f"the checkpoint {file} was made under other conditions, under which the bits come out differently "
                f"({changes}); resume with the same `execution` on the same kind of machine, or {remedy}"
            )
        if saved.plan != plan:
            raise CheckpointError(
                f"the checkpoint {file} was made with another recipe or other settings ({saved.plan}) than now "
                f"({plan}); {remedy}, or pass what the interrupted run was given"
            )
        try:
            model.load_state_dict(_under(tensors, "model."))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint {file} is of another network: {error}; {remedy}") from error
        if saved.optimizer is not None:
            _load_optimizer(optimizer, saved.optimizer, _under(tensors, "optimizer."))
            if scaler is not None and saved.scaler is not None:
                scaler.load_state_dict(saved.scaler)
        return saved.record, saved.complete

    def save(
        self,
        index: int,
        record: PhaseRecord,
        plan: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        *,
        complete: bool,
        keep_optimizer: bool = False,
    ) -> None:
        """Save where a phase stands, atomically; a complete phase keeps the optimiser's state only where told to."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        settings = None
        if keep_optimizer or not complete:
            settings, state = _split_optimizer(optimizer)
            tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
        progress = _Progress(
            fingerprint=self.fingerprint,
            conditions=dict(self.conditions),
            plan=plan,
            record=record,
            complete=complete,
            optimizer=settings,
            scaler=scaler.state_dict() if scaler is not None else None,
        )
        write_tensors(self._file(index, record.name), tensors, progress.model_dump())

    def _file(self, index: int, name: str) -> Path:
        return self.path / f"{index:02d}-{name}.safetensors"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [*before, *(name for name in now if name not in before)]
    return ", ".join(
        f"{name} was {before.get(name)} and is {now.get(name)}" for name in names if before.get(name) != now.get(name)
    )


def _split_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in whole["state"].items():
        plain[str(number)] = {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                plain[str(number)][name] = value
    return {"plain": plain, "groups": whole["param_groups"]}, tensors


def _load_optimizer(optimizer: torch.optim.Optimizer, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {int(number): dict(entries) for number, entries in settings["plain"].items()}
    for name, tensor in tensors.items():
        number, entry = name.split(".", 1)
        state.setdefault(int(number), {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": settings["groups"]})


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
