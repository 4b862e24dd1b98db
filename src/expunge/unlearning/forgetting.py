"""From a problem and a method to a model that has forgotten, and the record of how."""

import dataclasses
import platform
import secrets
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from expunge.data import MapDataset, subset
from expunge.errors import DivergedError, ModelChangedError, ModelError, NonFiniteModelError, StateError
from expunge.methods import Forgotten, Method
from expunge.problem import Problem, require_finite
from expunge.storage import digest_model, digest_tensors, ensure_writable, write_bytes
from expunge.training import CheckpointFolder, Execution, Run, over_batches, reproducible, seed_globals
from expunge.unlearning.overlap import require_apart
from expunge.unlearning.record import Record, describe_data, describe_state, digest_of, keyed, plain
from expunge.unlearning.result import KEY_FILE, Unlearned, read_key


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
        ModelError: Processes hold different models, or the model gives no finite loss on its own data.
        SettingError: A setting has a value that cannot be used.
        DataError: An example cannot be used with the model. Labels are checked before anything is computed.
        ForgetSetError: The labels contradict the problem's `classes`, or pictures to be forgotten are also in the
            surrogate.
        DivergedError: The objective became NaN or infinite.
        CheckpointError: There are checkpoints that cannot be used, of another run or made under other conditions.

    Example:
        >>> import expunge
        >>> result = expunge.unlearn(problem, expunge.UNSIR(), seed=0)  # doctest: +SKIP
    """
    method.require(problem)
    original_digest, state_digest = digest_model(problem.model), digest_of(problem.state)
    settings = plain(dataclasses.asdict(method))
    folder = Path(checkpoint_dir) if checkpoint_dir is not None else None
    run = Run(problem.task, seed, execution)
    _require_same_everywhere(run, original_digest)
    with reproducible(run.execution.threads):
        problem.check_labels()
        require_apart(problem, run)
        key = _key_for(run, folder, resume=resume)
        data = describe_data(problem, key)
        if folder is not None:
            original = keyed(original_digest, key)
            identity = (type(method).__name__, settings, run.seed, original, data, problem.classes)
            identity += () if state_digest is None else (keyed(state_digest, key),)
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
    if digest_of(problem.state) != state_digest:
        raise StateError(f"{type(method).__name__} wrote to the problem's state; a method must return a new one")
    record = Record(
        method=type(method).__name__,
        settings=settings,
        seed=run.seed,
        guarantee=method.tier if certificate is None else certificate.tier,
        certificate=certificate,
        classes=list(problem.classes),
        data=data,
        near_duplicates=problem.near_duplicates,
        state=describe_state(problem.state, forgotten.state, key, state_digest),
        original_digest=keyed(original_digest, key),
        result_digest=digest_model(model),
        phases=run.phases,
        seconds=max(seconds, sum(phase.seconds for phase in run.phases)),
        examples=sum(phase.examples for phase in run.phases),
        peak_memory_bytes=max((phase.peak_memory_bytes for phase in run.phases), default=0),
        execution=machine,
        versions=dict(_versions()),
        finished=datetime.now(UTC),
    )
    return Unlearned(model, record.sealed(key), problem, key, method, forgotten.state)


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
        return read_key(path)
    key = secrets.token_bytes(32)
    write_bytes(path, key, private=True)
    return key


def _probe(problem: Problem, run: Run) -> None:
    """Pass one example of each set through the model, so that a mismatch shows before anything is computed."""
    model = run.frozen(problem.model)
    for dataset in problem.datasets().values():
        for losses in over_batches(run, model, _first(dataset), run.task.losses):
            if not bool(torch.isfinite(losses).all()):
                raise ModelError("the model gives a loss that is NaN or infinite on its own data; check the model")


def _require_same_everywhere(run: Run, digest: str) -> None:
    if run.accelerator.num_processes > 1 and len(set(gather_object([digest]))) > 1:
        raise ModelError(
            "the processes hold models with different weights; load the same ones in each (under FSDP, from_pretrained "
            "gives them to the main process alone unless it is launched with --fsdp_cpu_ram_efficient_loading false)"
        )


def _first(dataset: MapDataset) -> MapDataset:
    return subset(dataset, torch.tensor([0]))


def _warm_up() -> None:
    """Take one step of an optimiser on nothing: what torch imports for the first one is no cost of unlearning."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.Adam([parameter]).step()


def _require_converged(model: nn.Module) -> None:
    try:
        require_finite(model)
    except NonFiniteModelError as error:
        raise DivergedError(
            f"the last step made the model NaN or infinite ({error}); lower the learning rate, or set clip_norm"
        ) from error


def _describe(run: Run) -> dict[str, Any]:
    return dataclasses.asdict(run.execution) | {
        "device": str(run.device),
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


@cache
def _versions() -> dict[str, str]:
    # kept, because reading the metadata of packages takes longer than a small deletion
    found = {name: version(name) for name in ("expunge", "torch", "accelerate", "transformers")}
    return found | {"python": platform.python_version()}
