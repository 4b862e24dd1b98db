"""From a problem and a method to a model that has forgotten, and the record of how."""

import copy
import dataclasses
import hashlib
import platform
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from expunge.data import MapDataset, digest_dataset, subset
from expunge.errors import (
    DivergedError,
    ModelChangedError,
    ModelError,
    NonFiniteModelError,
    SavedModelError,
    StateError,
)
from expunge.image_models.base import part_shared
from expunge.methods import Forgotten, Method
from expunge.privacy import Certificate, Tier
from expunge.problem import DeletionState, Problem, require_finite
from expunge.states import STATE_FILE, load_state, state_bytes
from expunge.storage import (
    digest_model,
    digest_tensors,
    ensure_writable,
    json_bytes,
    read_tensors,
    tensors_bytes,
    write_bytes,
    write_files,
)
from expunge.training import CheckpointFolder, Execution, PhaseRecord, Run, over_batches, reproducible, seed_globals

MODEL_FILE = "model.safetensors"
RECORD_FILE = "record.json"
KEY_FILE = "forget.key"


class DataRecord(BaseModel):
    """A dataset of the problem: how many examples, and a keyed digest (see `expunge.data.digest_dataset`)."""

    model_config = ConfigDict(extra="forbid")

    examples: int
    digest: str


class StateRecord(BaseModel):
    """A deletion state before and after: keyed digests, as those of data are."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    before: str | None = None
    after: str | None = None


class Record(BaseModel):
    """What was done to a model: enough to repeat it, and nothing about anyone's data.

    Digests of data, of states and of the original model are keyed with a secret that is kept in a file of its own.
    Without that file nobody can test a guess about who was forgotten (where training is deterministic, by training with
    the guess and comparing models); with it the owner can prove which set was meant. The digest of the result is plain:
    it says which model the record speaks of to those who hold that model, and nothing that the model does not say.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    method: str
    settings: dict[str, Any]
    seed: int
    guarantee: Tier
    certificate: Certificate | None = None
    classes: list[int]
    data: dict[str, DataRecord]
    state: StateRecord | None = None
    original_digest: str
    result_digest: str
    phases: list[PhaseRecord]
    seconds: float
    examples: int
    peak_memory_bytes: int
    execution: dict[str, Any]
    versions: dict[str, str]
    finished: datetime


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """A model after forgetting.

    Attributes:
        model: The new model, in evaluation mode.
        record: What was done.
        problem: What was asked for.
        key: The secret of the record's digests.
        method: What forgot; None of a result that was read from a folder without saying so.
        state: The problem's deletion state without the deleted rows, for the next request; None where there is none.
    """

    model: nn.Module
    record: Record
    problem: Problem = dataclasses.field(repr=False)
    key: bytes = dataclasses.field(repr=False)
    method: Method | None = dataclasses.field(default=None, repr=False)
    state: DeletionState | None = dataclasses.field(default=None, repr=False)

    def started_from(self, model: nn.Module) -> bool:
        """Whether a model is the original that this one was made from, told by the record's keyed digest."""
        return _keyed(digest_model(model), self.key) == self.record.original_digest

    def save(self, folder: str | Path, *, key_path: str | Path | None = None) -> None:
        """Write the weights, the record and, readable by the owner only, the key and the state.

        Args:
            folder: Where to; it is made where it is missing.
            key_path: File for the key, if it is not to lie in the folder: whoever has the key and the record can test
                guesses about the data, so keep the key out of a folder that is to be shared.

        Raises:
            OutputError: The folder cannot be written or the disk is full; files already there stay as they were.
        """
        folder = Path(folder)
        key = _key_file(folder, key_path)
        contents = {
            folder / MODEL_FILE: tensors_bytes(self.model.state_dict()),
            key: self.key,
            folder / RECORD_FILE: json_bytes(self.record.model_dump(mode="json")),
        }
        private = {key}
        if self.state is not None:
            contents[folder / STATE_FILE] = state_bytes(self.state)
            private.add(folder / STATE_FILE)
        write_files(contents, private=private)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        problem: Problem,
        *,
        key_path: str | Path | None = None,
        method: Method | None = None,
    ) -> "Unlearned":
        """Read what `save` wrote.

        Args:
            folder: Where it was saved.
            problem: The problem it answers; its model gives the architecture and must be the recorded original. Its
                sets must be the recorded ones; one that it lacks, because the data are deleted, is not compared.
            key_path: File of the key, if it does not lie in the folder.
            method: What forgot, for an audit with shadows; it must be the recorded one.

        Raises:
            SavedModelError: A file is missing or damaged, weights and record do not belong together, or model or data
                of the problem are others than those recorded.
        """
        folder = Path(folder)
        record = read_record(folder)
        if method is not None and (type(method).__name__, _plain(dataclasses.asdict(method))) != (
            record.method,
            record.settings,
        ):
            raise SavedModelError(f"{folder / RECORD_FILE} speaks of another method, or of other settings of it")
        tensors, _ = read_tensors(folder / MODEL_FILE)
        if digest_tensors(tensors) != record.result_digest:
            raise SavedModelError(
                f"{folder / MODEL_FILE} does not match {RECORD_FILE}: the weights were changed or belong to another "
                "run; restore both files from the same run"
            )
        key = _read_key(_key_file(folder, key_path))
        if _keyed(digest_model(problem.model), key) != record.original_digest:
            raise SavedModelError(
                f"the problem's model is not the original that {folder / RECORD_FILE} speaks of, or the key is that of "
                "another run; load the weights that unlearning started from, and the key that was saved with the record"
            )
        model = copy.deepcopy(problem.model).requires_grad_(True).eval()
        _part_untied(model, tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise SavedModelError(f"the saved weights do not fit the problem's model: {error}") from error
        _require_recorded_data(problem, record, key, folder)
        return cls(model, record, problem, key, method, _recorded_state(record, key, folder))


def unlearn(
    problem: Problem,
    method: Method,
    *,
    seed: int = 0,
    execution: Execution | None = None,
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
) -> Unlearned:
    """Make a copy of a model forget.

    Args:
        problem: The model, the data to forget and to keep.
        method: An instance of a method, as in `UNSIR()`.
        seed: Seed of everything random; the same seed on the same machine gives the same bits.
        execution: Device, precision, memory, progress.
        checkpoint_dir: Keep checkpoints here, so that a run that was killed can go on.
        resume: Go on from the checkpoints in `checkpoint_dir`.

    Returns:
        The new model and the record. The problem's model is left as it was.

    Raises:
        MissingNeedError: The method needs something that the problem lacks.
        SettingError: A setting has a value that cannot be used.
        DataError: An example cannot be used with the model. Labels are checked before anything is computed.
        ForgetSetError: The labels contradict the problem's `classes`.
        DivergedError: The objective became NaN or infinite.
        CheckpointError: There are checkpoints that cannot be used, of another run or made under other conditions.

    Example:
        >>> import expunge
        >>> result = expunge.unlearn(problem, expunge.UNSIR(), seed=0)  # doctest: +SKIP
    """
    method.require(problem)
    original_digest, state_digest = digest_model(problem.model), _digest(problem.state)
    settings = _plain(dataclasses.asdict(method))
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    run = Run(problem.task, seed, execution)
    with reproducible(run.execution.threads):
        problem.check_labels()
        key = _key_for(run, folder, resume=resume)
        data = _describe_data(problem, key)
        if folder is not None:
            original = _keyed(original_digest, key)
            identity = (type(method).__name__, settings, run.seed, original, data, problem.classes)
            identity += () if state_digest is None else (_keyed(state_digest, key),)
            fingerprint = digest_tensors({repr(identity): torch.empty(0)})
            run.checkpoints = CheckpointFolder(folder, fingerprint, run.conditions)
        seed_globals(run.seed, "method")
        _probe(problem, run)
        _warm_up()
        started = time.monotonic()
        returned = method.apply(problem, run)
        seconds = time.monotonic() - started
        machine = _describe(run)
    forgotten = returned if isinstance(returned, Forgotten) else Forgotten(returned)
    model, certificate = forgotten.model, forgotten.certificate
    _require_converged(model)
    if digest_model(problem.model) != original_digest:
        raise ModelChangedError(
            f"{type(method).__name__} wrote to the original model; a method must work on `run.copy(problem.model)`"
        )
    if _digest(problem.state) != state_digest:
        raise StateError(f"{type(method).__name__} wrote to the problem's state; a method must return a new one")
    record = Record(
        method=type(method).__name__,
        settings=settings,
        seed=run.seed,
        guarantee=method.tier if certificate is None else certificate.tier,
        certificate=certificate,
        classes=list(problem.classes),
        data=data,
        state=_describe_state(problem.state, forgotten.state, key, state_digest),
        original_digest=_keyed(original_digest, key),
        result_digest=digest_model(model),
        phases=run.phases,
        seconds=max(seconds, sum(phase.seconds for phase in run.phases)),
        examples=sum(phase.examples for phase in run.phases),
        peak_memory_bytes=max((phase.peak_memory_bytes for phase in run.phases), default=0),
        execution=machine,
        versions=dict(_versions()),
        finished=datetime.now(UTC),
    )
    return Unlearned(model, record, problem, key, method, forgotten.state)


def read_record(folder: str | Path) -> Record:
    """Read the record of a saved run.

    Raises:
        SavedModelError: It is missing, damaged, or of another version.
    """
    path = Path(folder) / RECORD_FILE
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SavedModelError(f"there is no {path}; pass the folder that a run was saved to") from error
    except ValidationError as error:
        raise SavedModelError(f"{path} is damaged or of another version: {error}") from error


def _describe_data(problem: Problem, key: bytes) -> dict[str, DataRecord]:
    seed_globals(0, "digest")  # a dataset that augments at random must give the same digest each time
    return {
        name: DataRecord(examples=len(dataset), digest=digest_dataset(dataset, key))
        for name, dataset in problem.datasets().items()
    }


def _digest(state: DeletionState | None) -> str | None:
    return None if state is None else state.digest()


def _keyed(digest: str, key: bytes) -> str:
    """A digest that cannot be linked between records, nor compared with that of what somebody else holds or made."""
    return hashlib.sha256(key + digest.encode()).hexdigest()


def _describe_state(
    before: DeletionState | None, after: DeletionState | None, key: bytes, digest_before: str | None
) -> StateRecord | None:
    kinds = [state.kind for state in (after, before) if state is not None]
    if not kinds:
        return None
    first, second = (None if digest is None else _keyed(digest, key) for digest in (digest_before, _digest(after)))
    return StateRecord(kind=kinds[0], before=first, after=second)


def _recorded_state(record: Record, key: bytes, folder: Path) -> DeletionState | None:
    if record.state is None or record.state.after is None:
        return None
    state = load_state(folder)
    if _keyed(state.digest(), key) != record.state.after:
        raise SavedModelError(
            f"{folder / STATE_FILE} does not match {RECORD_FILE}: the state belongs to another run, or it was used "
            "since; restore both files from the same run"
        )
    return state


def _part_untied(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give weights that the original shares, and that a method has parted, a place of their own each."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    whole = {name for shared in names.values() for name in shared}
    for first, *others in names.values():
        apart = {
            name
            for name in others
            if name in tensors and first in tensors and not torch.equal(tensors[name], tensors[first])
        }
        part_shared(model, whole - apart)


def _require_recorded_data(problem: Problem, record: Record, key: bytes, folder: Path) -> None:
    with reproducible():
        found = _describe_data(problem, key)
    changed = [name for name, recorded in record.data.items() if found.get(name, recorded) != recorded]
    if changed:
        raise SavedModelError(
            f"the {' and the '.join(changed)} set {'is' if len(changed) == 1 else 'are'} not what "
            f"{folder / RECORD_FILE} speaks of: the data, or how they are read and parted, have changed since; restore "
            "them, or unlearn again"
        )


def _require_converged(model: nn.Module) -> None:
    try:
        require_finite(model)
    except NonFiniteModelError as error:
        raise DivergedError(
            f"the last step made the model NaN or infinite ({error}); lower the learning rate, or set clip_norm"
        ) from error


def _probe(problem: Problem, run: Run) -> None:
    """Pass one example of each set through the model, so that a mismatch shows before anything is computed."""
    model = run.frozen(problem.model)
    for dataset in problem.datasets().values():
        for losses in over_batches(run, model, _first(dataset), run.task.losses):
            if not bool(torch.isfinite(losses).all()):
                raise ModelError("the model gives a loss that is NaN or infinite on its own data; check the model")


def _warm_up() -> None:
    """Take one step of an optimiser on nothing: what torch imports for the first one is no cost of unlearning."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()


def _first(dataset: MapDataset) -> MapDataset:
    return subset(dataset, torch.tensor([0]))


def _key_for(run: Run, folder: Path | None, *, resume: bool) -> bytes:
    """The key of the data digests, the same in every process; the folder is opened by the main process alone."""
    key = b""
    if run.accelerator.is_main_process:
        key = secrets.token_bytes(32) if folder is None else _open_folder(folder, resume=resume)
    return broadcast_object_list([key])[0]


def _open_folder(folder: Path, *, resume: bool) -> bytes:
    ensure_writable(folder)
    CheckpointFolder(folder, "").open(resume=resume)
    path = folder / KEY_FILE
    if resume and path.exists():
        return _read_key(path)
    key = secrets.token_bytes(32)
    write_bytes(path, key, private=True)
    return key


def _key_file(folder: Path, key_path: str | Path | None) -> Path:
    return folder / KEY_FILE if key_path is None else Path(key_path)


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SavedModelError(
            f"the key {path} cannot be read ({error.strerror}); restore it from a copy, or say where it "
            "lies (key_path=, or `key` in the job)"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.value if isinstance(value, Enum) else value


@cache
def _versions() -> dict[str, str]:
    # kept, because reading the metadata of packages takes longer than a small deletion
    found = {name: version(name) for name in ("expunge", "torch", "accelerate", "transformers")}
    return found | {"python": platform.python_version()}


def _describe(run: Run) -> dict[str, Any]:
    return dataclasses.asdict(run.execution) | {
        "device": str(run.device),
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }
