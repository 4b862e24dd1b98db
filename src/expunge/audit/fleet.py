"""Training many models by one recipe: what is in the cache is read from it, the rest trained in the fastest way."""

import copy
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import nn

from expunge.audit.batched import Batched, shortened
from expunge.audit.cache import Cache
from expunge.audit.data_names import DataNames
from expunge.audit.executors import (
    Executor,
    Finished,
    InProcess,
    Processes,
    TrainingJob,
    cores,
    executor_from,
)
from expunge.audit.identity import recipe_name, structure_name
from expunge.data import MapDataset, View
from expunge.errors import DataError, NonFiniteModelError, OutputError, ReferenceModelError, SettingError
from expunge.problem import Recipe, require_finite
from expunge.settings import require_at_least, require_one_of, require_whole
from expunge.storage import digest_model
from expunge.training import Supervised, Term, bar, reproducible, seed_globals

ExecutorName = Literal["auto", "in-process", "processes", "ray", "batched"]

_TRIAL_STEPS = 8
_WARM_UP_STEPS = 2
_TRIAL_SHARE = 20  # the steps to be taken are at least so many times those of a trial, or none is made
_GAIN = 0.85  # another way than one by one must promise to take less than this share of the time
_WORTH_PROCESSES = 60.0  # seconds: starting workers takes several


@dataclass(frozen=True)
class FleetSettings:
    """How and where reference models are trained.

    Args:
        executor: `in-process`: one after another. `batched`: many as one, equal up to rounding. `processes`: on the
            cores of this machine. `ray`: on a Ray cluster. `auto`: a short trial decides; what it measured is kept.
        cache: Where trained models are kept: a folder, True for `EXPUNGE_CACHE_DIR` or the platform's cache folder, or
            False for nowhere. By default as with True, but where models cannot be kept only a note says so.
        workers: Models under way at the same time, for `processes` and `ray`.
        gpus_per_model: Share of a GPU that each model takes, for `ray`.
        models_as_one: Most models that `batched` trains as one.
    """

    executor: ExecutorName = "auto"
    cache: str | Path | bool | None = None
    workers: int | None = None
    gpus_per_model: float = 0.0
    models_as_one: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_one_of(self, "executor", get_args(ExecutorName))
        require_whole(self, "workers", "models_as_one")
        require_at_least(self, 0, "gpus_per_model")


@dataclass(frozen=True)
class Choice:
    """In which way models were trained, and why.

    Attributes:
        executor: Its name; `none` where every model came from the cache.
        reason: In words.
        expected_seconds: What a trial led to expect of each way, for all models that were to be trained.
        seconds_each: What a trial led to expect of one model trained by itself.
    """

    executor: str
    reason: str
    expected_seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    seconds_each: float | None = None


@dataclass(frozen=True)
class Trained:
    """The models of a fleet.

    Attributes:
        models: In the order of the jobs, in evaluation mode.
        seconds: What training each by itself took: measured (also where it comes from the cache), expected from a
            trial where models were trained as one, or None where nothing is known.
        cached: How many came from the cache.
        choice: How the others were trained.
        notes: What the user should know, such as why nothing is cached.
    """

    models: Sequence[nn.Module]
    seconds: Sequence[float | None]
    cached: int
    choice: Choice
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """Models to be trained by one recipe.

    Args:
        recipe: How each is trained.
        jobs: On what data and with which seed.
        title: What they are, for the progress bar.
        template: A model of the kind that the recipe makes. Models of a recipe that is a function of its own are read
            from the cache into a copy of it; they are not cached without.
    """

    recipe: Recipe
    jobs: Sequence[TrainingJob]
    title: str = "models"
    template: nn.Module | None = None

    def train(self, settings: FleetSettings | None = None, *, progress: bool = True) -> Trained:
        """Train every job, or read it from the cache.

        A fleet that was killed goes on: models that were finished are read from the cache, and one under way continues
        where the recipe is `Supervised` and trains one by one.

        Raises:
            ReferenceModelError: The recipe failed, or ignores its seed or its data. What was finished stays cached.
            MissingNeedError: Ray is asked for and not installed.
            SettingError: The executor that was asked for cannot train these models.
            OutputError: The cache folder that was asked for cannot be used.
        """
        settings = settings or FleetSettings()
        recipe = _quiet(self.recipe)
        shelf = _Shelf.open(self, recipe, settings)
        jobs = [replace(job, checkpoints=shelf.checkpoints(number)) for number, job in enumerate(self.jobs)]
        results: dict[int, Finished] = {
            number: found for number in range(len(jobs)) if (found := shelf.load(number)) is not None
        }
        cached, distinct = len(results), _Distinct(jobs)
        for number, finished in results.items():
            distinct.require(number, cast(nn.Module, finished.model))
        missing = [number for number in range(len(jobs)) if number not in results]
        chosen = [jobs[number] for number in missing]
        with bar(self.title, len(jobs), done=cached, enabled=progress) as display:
            display.advance(0, "choosing the fastest way")
            executor, choice = choose(recipe, chosen, settings)
            coming = executor.train(recipe, chosen, lambda note: display.advance(0, note)) if chosen else ()
            for result in coming:
                number = missing[result.number]
                finished = _sound(result, jobs[number], choice)
                shelf.save(number, finished)
                results[number] = finished
                distinct.require(number, cast(nn.Module, finished.model))
                display.advance(1, f"{finished.seconds:.1f} s each" if finished.seconds is not None else "")
        ordered = [results[number] for number in range(len(jobs))]
        models = [cast(nn.Module, finished.model) for finished in ordered]
        return Trained(models, [finished.seconds for finished in ordered], cached, choice, tuple(shelf.notes))


def choose(recipe: Recipe, jobs: Sequence[TrainingJob], settings: FleetSettings) -> tuple[Executor, Choice]:
    """The executor for these jobs, after a trial where that is left to us.

    Raises:
        SettingError: The executor that was asked for cannot train them.
    """
    if not jobs:
        return InProcess(), Choice("none", "every model came from the cache")
    if _processes_here() > 1:
        if settings.executor not in {"auto", "in-process"}:
            raise SettingError(
                f"the executor {settings.executor} starts from one process, but this is one of {_processes_here()} "
                "that train together; choose in-process, or start without accelerate launch"
            )
        return InProcess(), Choice("in-process", "this is one of several processes that train together")
    if settings.executor == "auto":
        return _by_trial(recipe, jobs, settings)
    if settings.executor == "batched":
        batched = Batched(settings.models_as_one)
        refusal = batched.refusal(recipe, jobs)
        if refusal is None:
            return batched, Choice("batched", "as asked for")
        return InProcess(), Choice("in-process", f"not batched as asked for: {refusal}")
    executor = executor_from(settings.executor, settings.workers, settings.gpus_per_model)
    refusal = executor.refusal(recipe, jobs)
    if refusal is not None:
        raise SettingError(f"the executor {settings.executor} cannot be used: {refusal}")
    return executor, Choice(settings.executor, "as asked for")


def _by_trial(recipe: Recipe, jobs: Sequence[TrainingJob], settings: FleetSettings) -> tuple[Executor, Choice]:
    alone = InProcess()
    if not isinstance(recipe, Supervised):
        return alone, Choice(alone.name, "the recipe is a function of its own, of which no single steps can be tried")
    term = Term(jobs[0].dataset, recipe.task.losses, batch_size=recipe.batch_size)
    steps = recipe.epochs * term.steps_per_epoch
    trial_steps = 4 * _WARM_UP_STEPS + 2 * _TRIAL_STEPS
    if len(jobs) < 2 or steps < _TRIAL_SHARE * trial_steps / len(jobs):
        return alone, Choice(alone.name, "too little is to be trained for a trial to pay")
    step_alone = _seconds_a_step(alone, recipe, jobs[:1])
    if step_alone is None:
        return alone, Choice(alone.name, "a trial of a few steps failed")
    each = steps * step_alone
    ways: dict[str, Executor] = {alone.name: alone}
    expected = {alone.name: each * len(jobs)}
    reasons: list[str] = []

    def consider(executor: Executor, group: Sequence[TrainingJob]) -> None:
        refusal = executor.refusal(recipe, jobs)
        step = _seconds_a_step(executor, recipe, group) if refusal is None else None
        if step is None:
            reasons.append(f"not {executor.name}: {refusal or 'its trial failed'}")
        else:
            ways[executor.name] = executor
            expected[executor.name] = steps * step * len(jobs) / len(group)

    consider(Batched(settings.models_as_one), jobs[: settings.models_as_one])
    workers = min(settings.workers or cores(), len(jobs))
    if workers > 1 and min(expected.values()) > _WORTH_PROCESSES and not torch.cuda.is_available():
        consider(Processes(workers), jobs[:workers])
    best = min(expected, key=lambda name: expected[name])
    if expected[best] > _GAIN * expected[alone.name]:
        best = alone.name
    reason = "; ".join([f"fastest of {', '.join(expected)} in a trial", *reasons])
    return ways[best], Choice(best, reason, expected, each)


def _seconds_a_step(executor: Executor, recipe: Supervised, jobs: Sequence[TrainingJob]) -> float | None:
    """Wall time of one step of all these jobs: a longer and a shorter trial differ by steps alone.

    None where the trial fails. That decides nothing: a schedule crammed into a few steps may diverge where the whole
    does not, and a recipe that is broken will show it when models are trained.
    """
    plain = [replace(job, checkpoints=None) for job in jobs]
    taken: dict[int, float] = {}
    short, long = _WARM_UP_STEPS, _WARM_UP_STEPS + _TRIAL_STEPS
    for steps in (short, long, short, long):  # the smaller reading of each: what else runs here only adds
        started = time.perf_counter()
        for result in executor.train(shortened(recipe, plain[0], steps), plain, lambda _: None):
            if result.error is not None:
                return None
        seconds = time.perf_counter() - started
        taken[steps] = min(seconds, taken.get(steps, seconds))
    return max(taken[long] - taken[short], 1e-9) / _TRIAL_STEPS


def _sound(result: Finished, job: TrainingJob, choice: Choice) -> Finished:
    error = result.error
    if isinstance(error, ReferenceModelError):
        raise error
    if error is not None or result.model is None:
        named = type(error).__name__ if isinstance(error, Exception) else str(error)
        raise ReferenceModelError(
            f"the recipe failed while training {job.name} with {named}; run it on the retain set by itself to see its "
            "message, which is left out here because it may quote data"
        ) from (error if isinstance(error, Exception) else None)
    try:
        require_finite(result.model)
    except NonFiniteModelError as problem:
        raise ReferenceModelError(
            f"the recipe made {job.name} NaN or infinite; lower the learning rate, or clip gradients"
        ) from problem
    return result if result.seconds is not None else replace(result, seconds=choice.seconds_each)


class _Distinct:
    """Notices models that are equal where they must not be."""

    def __init__(self, jobs: Sequence[TrainingJob]) -> None:
        self.jobs = jobs
        self.first: dict[str, int] = {}
        self.names = DataNames(secrets.token_bytes(32))

    def require(self, number: int, model: nn.Module) -> None:
        """Raise where this model equals one of another seed or other data."""
        other = self.first.setdefault(digest_model(model), number)
        one, two = self.jobs[other], self.jobs[number]
        ignored = "its seed" if one.seed != two.seed else ""
        if other == number:
            return
        if self._data_differ(one.dataset, two.dataset):
            ignored = f"{ignored} and its data" if ignored else "its data"
        if ignored:
            raise ReferenceModelError(
                f"{one.name} and {two.name} are equal bit for bit: the recipe ignores {ignored}, so nothing is known "
                "of how retraining varies; a recipe must train on the dataset it is given, from the seed it is given"
            )

    def _data_differ(self, one: MapDataset, two: MapDataset) -> bool:
        first, second = View.of(one), View.of(two)
        if first.base is second.base and torch.equal(first.indices, second.indices):
            return False
        try:
            return self.names.of(one) != self.names.of(two)
        except DataError:  # drawn anew at each reading: nothing can be said
            return False


class _Shelf:
    """The fleet's models in the cache; where there is none, every model is missing."""

    def __init__(self, template: Callable[[int], nn.Module]) -> None:
        self.template = template
        self.cache: Cache | None = None
        self.names: list[str] = []
        self.notes: list[str] = []

    @classmethod
    def open(cls, fleet: Fleet, recipe: Recipe, settings: FleetSettings) -> "_Shelf":
        """Open the cache and name every model; a note says why that is not possible."""
        shelf = cls(lambda number: _template(fleet, recipe, fleet.jobs[number].seed))
        if settings.cache is False:
            return shelf
        try:
            if _processes_here() > 1:
                raise ReferenceModelError("several processes train together")
            if not isinstance(recipe, Supervised) and fleet.template is None:
                raise ReferenceModelError("no model was given as a template to read weights into")
            if fleet.template is not None and not isinstance(recipe, Supervised):
                structure_name(fleet.template)
            identity = recipe_name(_bare(recipe), _device(recipe))
            shelf.cache = Cache.open(settings.cache if isinstance(settings.cache, str | Path) else None)
            data = DataNames(shelf.cache.key)
            with reproducible():
                shelf.names = [shelf.cache.name(identity, data.of(job.dataset), job.seed) for job in fleet.jobs]
        except (ReferenceModelError, DataError, OutputError) as error:
            if isinstance(error, OutputError) and settings.cache is not None:
                raise
            shelf.cache = None
            shelf._say(f"the {fleet.title} are not cached: {error}", warn=settings.cache is not None)
        return shelf

    def checkpoints(self, number: int) -> Path | None:
        """Where training of a model goes on after a kill."""
        return self.cache.checkpoints(self.names[number]) if self.cache is not None else None

    def load(self, number: int) -> Finished | None:
        """The model, if it is there, sound, and of the same structure."""
        saved = self.cache.load_model(self.names[number]) if self.cache is not None else None
        if self.cache is None or saved is None:
            return None
        tensors, notes = saved
        model = self.template(number)
        if notes.get("structure") != structure_name(model):
            return None
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            self.cache.discard(self.names[number], "its weights are of another network")
            return None
        return Finished(number, model.eval(), cast("float | None", notes.get("seconds")))

    def save(self, number: int, finished: Finished) -> None:
        """Keep a model; where that fails the fleet goes on without."""
        if self.cache is None or finished.model is None:
            return
        try:
            notes = {"structure": structure_name(finished.model), "seconds": finished.seconds}
            self.cache.save_model(self.names[number], finished.model.state_dict(), notes)
        except (OutputError, ReferenceModelError) as error:
            self.cache = None
            self._say(f"models are not cached any further: {error}", warn=isinstance(error, OutputError))

    def _say(self, note: str, *, warn: bool) -> None:
        self.notes.append(note)
        if warn:
            warnings.warn(note, stacklevel=4)


def _template(fleet: Fleet, recipe: Recipe, seed: int) -> nn.Module:
    """An untrained model to read weights into."""
    if isinstance(recipe, Supervised):
        with reproducible(recipe.execution.threads):
            seed_globals(seed, "build")
            return recipe.build()
    return copy.deepcopy(cast(nn.Module, fleet.template)).requires_grad_(True)


def _quiet(recipe: Recipe) -> Recipe:
    """The same without bars of its own: the fleet has one."""
    if isinstance(recipe, Supervised):
        return replace(recipe, execution=replace(recipe.execution, progress=False))
    return recipe


def _bare(recipe: Recipe) -> Recipe:
    """The same without what changes no weight."""
    if isinstance(recipe, Supervised):
        return replace(recipe, execution=replace(recipe.execution, workers=0, checkpoint_seconds=0, threads=None))
    return recipe


def _device(recipe: Recipe) -> str:
    on_cpu = isinstance(recipe, Supervised) and recipe.execution.device == "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() and not on_cpu else "cpu"


def _processes_here() -> int:
    """Processes that train together under `accelerate launch` or torchrun, known before accelerate has started."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1
