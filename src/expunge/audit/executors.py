"""Where reference models are trained: in this process, in several on this machine, or on a Ray cluster."""

import importlib
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import cloudpickle
import joblib
import torch
from torch import nn
from torch.utils.data import TensorDataset

from expunge.data import MapDataset, View
from expunge.errors import CheckpointError, MissingNeedError, ReferenceModelError, SettingError
from expunge.problem import Recipe
from expunge.storage import claimed
from expunge.training import CheckpointFolder, Run, Supervised, reproducible, seed_globals


@dataclass(frozen=True)
class TrainingJob:
    """One model to train.

    Args:
        dataset: What on.
        seed: With which seed.
        name: For errors, such as `oracle 3`.
        checkpoints: Where its training goes on after a kill, if it can.
    """

    dataset: MapDataset
    seed: int
    name: str = "a reference model"
    checkpoints: Path | None = None


@dataclass(frozen=True)
class Finished:
    """One model that has been trained, or the error that stood in the way.

    Attributes:
        number: Which of the jobs.
        model: In evaluation mode on the CPU.
        seconds: Wall time of training this model by itself, where that is known.
        error: The error, whose message may quote data; from another process only the name of its type.
    """

    number: int
    model: nn.Module | None = None
    seconds: float | None = None
    error: Exception | str | None = None


class Executor(ABC):
    """A way of training many models by one recipe."""

    name: ClassVar[str]

    @abstractmethod
    def refusal(self, recipe: Recipe, jobs: Sequence[TrainingJob]) -> str | None:
        """Why these models cannot be trained in this way, or None where they can."""

    @abstractmethod
    def train(self, recipe: Recipe, jobs: Sequence[TrainingJob], tell: Callable[[str], None]) -> Generator[Finished]:
        """Train every job; models come out as they are finished, in any order.

        Args:
            recipe: How.
            jobs: What on.
            tell: Is told in short how far things are.
        """


class InProcess(Executor):
    """One model after another, here."""

    name: ClassVar = "in-process"

    def refusal(self, recipe: Recipe, jobs: Sequence[TrainingJob]) -> str | None:
        """Never refuses."""
        return None

    def train(self, recipe: Recipe, jobs: Sequence[TrainingJob], tell: Callable[[str], None]) -> Generator[Finished]:
        """Train one after another; a `Supervised` recipe goes on from its checkpoints."""
        for number, job in enumerate(jobs):
            yield replace(train_one(recipe, job), number=number)


@dataclass(frozen=True)
class Processes(Executor):
    """Several processes on this machine, which share out its cores.

    Args:
        workers: How many; by default one a core.
    """

    name: ClassVar = "processes"

    workers: int | None = None

    def refusal(self, recipe: Recipe, jobs: Sequence[TrainingJob]) -> str | None:
        """Refuses what cannot be sent to another process."""
        return unsendable(recipe, jobs[:1])

    def train(self, recipe: Recipe, jobs: Sequence[TrainingJob], tell: Callable[[str], None]) -> Generator[Finished]:
        """Train in joblib's processes."""
        workers = min(self.workers or cores(), len(jobs))
        threads = max(1, cores() // workers)
        # no memory maps: they would put training data on the disk
        pool = joblib.Parallel(
            n_jobs=workers, backend="loky", return_as="generator_unordered", max_nbytes=None, pre_dispatch="n_jobs"
        )
        tell(f"{workers} processes")
        calls = (
            joblib.delayed(_train_elsewhere)(number, recipe, _compact(job), threads) for number, job in enumerate(jobs)
        )
        coming = cast("Generator[Finished]", pool(calls))
        try:
            yield from coming
        finally:  # where the fleet stops early, what is still under way is given up
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*tasks have been successfully executed but not used")
                warnings.filterwarnings("ignore", message=".*tasks which were still being processed")
                coming.close()


@dataclass(frozen=True)
class Ray(Executor):
    """The machines of a Ray cluster: one that runs, the one that `RAY_ADDRESS` names, or a local one.

    Args:
        workers: Models under way at the same time; by default as many as the cluster holds.
        gpus_per_model: Share of a GPU for each model.
        cpus_per_model: Cores for each model.
    """

    name: ClassVar = "ray"

    workers: int | None = None
    gpus_per_model: float = 0.0
    cpus_per_model: float = 1.0

    def refusal(self, recipe: Recipe, jobs: Sequence[TrainingJob]) -> str | None:
        """Refuses what cannot be sent to another process."""
        return unsendable(recipe, jobs[:1])

    def train(self, recipe: Recipe, jobs: Sequence[TrainingJob], tell: Callable[[str], None]) -> Generator[Finished]:
        """Train as Ray tasks; a Ray that was started for this is shut down at the end.

        Raises:
            MissingNeedError: Ray is not installed.
        """
        ray = _ray()
        with _running(ray):
            threads = max(1, int(self.cpus_per_model))
            remote = ray.remote(num_cpus=self.cpus_per_model, num_gpus=self.gpus_per_model, max_retries=1)(
                _train_elsewhere
            )
            waiting = list(enumerate(jobs))[::-1]
            limit = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1) / max(self.cpus_per_model, 0.01)))
            tell(f"Ray, {limit} at a time")
            pending: list[Any] = []
            while waiting or pending:
                while waiting and len(pending) < limit:
                    number, job = waiting.pop()
                    # the checkpoints of this machine are not there on another
                    sent = replace(_compact(job), checkpoints=None)
                    pending.append(remote.remote(number, recipe, sent, threads))
                done, pending = ray.wait(pending, num_returns=1)
                yield from ray.get(done)


def train_one(recipe: Recipe, job: TrainingJob) -> Finished:
    """Train one model in this process; an error is returned and not raised."""
    started = time.monotonic()
    try:
        with reproducible(recipe.execution.threads if isinstance(recipe, Supervised) else None):
            seed_globals(job.seed)
            if type(recipe) is Supervised and job.checkpoints is not None:
                model = _resumed(recipe, job, job.checkpoints)
            else:
                model = recipe(job.dataset, job.seed)
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ReferenceModelError(f"the recipe returned a {type(model).__name__}, not a torch module")
        model = model.eval()
    except Exception as error:
        return Finished(0, error=error)
    return Finished(0, model, time.monotonic() - started)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here() -> int:
    """Processes that train together under `accelerate launch` or torchrun, known before accelerate has started."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def unsendable(recipe: Recipe, jobs: Sequence[TrainingJob]) -> str | None:
    """Why a recipe and its data cannot go to another process."""
    try:
        cast(Any, cloudpickle).dumps((recipe, [_compact(job) for job in jobs]))
    except Exception as error:  # what a value's own __reduce__ may raise is not for us to know
        return (
            f"the recipe or its dataset cannot be sent to another process ({type(error).__name__} while pickling); "
            "let the recipe open files, locks and connections when it is called, or choose the executor in-process"
        )
    return None


def _resumed(recipe: Supervised, job: TrainingJob, folder: Path) -> nn.Module:
    """Go on from checkpoints; those made under other conditions are of no use and are removed."""
    with claimed(folder) as mine:
        if not mine:  # another process is training this very model
            return recipe(job.dataset, job.seed)
        run = Run(recipe.task, job.seed, recipe.execution)
        run.checkpoints = CheckpointFolder(folder, folder.name, run.conditions)
        try:
            run.checkpoints.open(resume=True)
            return recipe.fit(job.dataset, run)
        except CheckpointError:
            for file in folder.glob("*.safetensors"):
                file.unlink(missing_ok=True)
            fresh = Run(recipe.task, job.seed, recipe.execution)
            fresh.checkpoints = run.checkpoints
            return recipe.fit(job.dataset, fresh)


def _train_elsewhere(number: int, recipe: Recipe, job: TrainingJob, threads: int) -> Finished:
    """In a worker: train, and send back a model or the name of an error, whose message may quote data."""
    torch.set_num_threads(threads)
    finished = train_one(recipe, job)
    error = finished.error
    if finished.model is not None:
        finished.model.cpu()
    named = type(error).__name__ if isinstance(error, Exception) else error
    return replace(finished, number=number, error=named)


def _compact(job: TrainingJob) -> TrainingJob:
    """The job with no more data than it uses."""
    view = View.of(job.dataset)
    if isinstance(view.base, TensorDataset) and len(view.indices) < len(view.base):
        return replace(
            job, dataset=cast(MapDataset, TensorDataset(*(part[view.indices] for part in view.base.tensors)))
        )
    return job


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingNeedError(
            "the executor ray needs Ray, which is not installed: pip install 'expunge[ray]', or choose the executor "
            "processes"
        ) from error


@contextmanager
def _running(ray: Any) -> Generator[None]:
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def executor_from(name: str, workers: int | None, gpus_per_model: float) -> Executor:
    """The executor of a name; `auto` and `batched` are not made here.

    Raises:
        SettingError: There is no such executor.
    """
    match name:
        case "in-process":
            return InProcess()
        case "processes":
            return Processes(workers)
        case "ray":
            return Ray(workers, gpus_per_model)
        case _:
            raise SettingError(f"there is no executor {name!r}; choose auto, in-process, processes, ray or batched")
