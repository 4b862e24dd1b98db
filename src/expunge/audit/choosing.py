"""In which way a fleet of models is trained, as asked for or as a short trial decides, and how long that will take."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from expunge.audit.batched import Batched, shortened
from expunge.audit.executors import Executor, InProcess, Processes, TrainingJob, cores, executor_from, processes_here
from expunge.errors import SettingError
from expunge.problem import Recipe
from expunge.settings import require_at_least, require_one_of, require_whole
from expunge.training import Supervised, Term

ExecutorName = Literal["auto", "in-process", "processes", "ray", "batched"]

_TRIAL_STEPS = 8
_WARM_UP_STEPS = 2
_TRIAL_SHARE = 20  # the steps to be taken are at least so many times those of a trial, or none is made
_GAIN = 0.85  # another way than one by one must promise to take less than this share of the time
_WORTH_PROCESSES = 60.0  # seconds: starting workers takes several
_TIMED_STEPS = 2  # where nothing is to be chosen, fewer do to tell about how long it takes
_TIMED_SHARE = 10


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
class Expected:
    """What training a fleet will cost, as far as that is known before.

    Attributes:
        title: What the models are, in the plural.
        to_train: How many are to be trained.
        cached: How many come from the cache.
        choice: In which way they will be trained; here `seconds_each` may also rest on models in the cache.
        seconds: Wall time for all of them, or None where it is not known.
        unknown: Why it is not known.
    """

    title: str
    to_train: int
    cached: int
    choice: Choice
    seconds: float | None
    unknown: str = ""


def expect(
    title: str,
    recipe: Recipe,
    jobs: Sequence[TrainingJob],
    executor: Executor,
    choice: Choice,
    before: Sequence[float | None],
) -> Expected:
    """What training these jobs will cost: by the trial, by models in the cache, or by timing a few steps.

    Args:
        title: What the models are.
        recipe: How they are trained.
        jobs: Those that are not in the cache.
        executor: What will train them.
        choice: How it was chosen.
        before: For each model in the cache, what training it by itself took.
    """
    expected = Expected(title, len(jobs), len(before), choice, None)
    known = [seconds for seconds in before if seconds is not None]
    if not jobs:
        return replace(expected, seconds=0.0)
    if executor.name in choice.expected_seconds:
        return replace(expected, seconds=choice.expected_seconds[executor.name])
    if known and not isinstance(executor, Batched):
        return _from_each(expected, sum(known) / len(known))
    if not isinstance(recipe, Supervised):
        return replace(expected, unknown="the recipe is a function of its own, of which no single steps can be timed")
    if processes_here() > 1:
        return replace(expected, unknown="several processes train together")
    if _steps_of(recipe, jobs[0]) * len(jobs) < _TIMED_SHARE * (4 + 2 * _TIMED_STEPS):
        return replace(expected, unknown="those are too few steps to time")
    return _timed(expected, recipe, jobs, executor)


def _timed(expected: Expected, recipe: Supervised, jobs: Sequence[TrainingJob], executor: Executor) -> Expected:
    together = jobs[: executor.models] if isinstance(executor, Batched) else jobs[:1]
    way = executor if isinstance(executor, Batched) else InProcess()
    step = _seconds_a_step(way, recipe, together, warm_up=1, steps=_TIMED_STEPS)
    if step is None:
        return replace(expected, unknown="a trial of a few steps failed")
    seconds = _steps_of(recipe, jobs[0]) * step
    if isinstance(executor, Batched):
        return replace(expected, seconds=seconds * len(jobs) / len(together))
    return _from_each(expected, seconds)


def _from_each(expected: Expected, seconds: float) -> Expected:
    """For all where they come one after another; how well several at a time share a machine is not known before."""
    choice = replace(expected.choice, seconds_each=seconds)
    whole = seconds * expected.to_train if choice.executor == InProcess.name else None
    return replace(expected, choice=choice, seconds=whole)


def choose(recipe: Recipe, jobs: Sequence[TrainingJob], settings: FleetSettings) -> tuple[Executor, Choice]:
    """The executor for these jobs, after a trial where that is left to us.

    Raises:
        SettingError: The executor that was asked for cannot train them.
    """
    if not jobs:
        return InProcess(), Choice("none", "every model came from the cache")
    if processes_here() > 1:
        if settings.executor not in {"auto", "in-process"}:
            raise SettingError(
                f"the executor {settings.executor} starts from one process, but this is one of {processes_here()} "
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
    steps = _steps_of(recipe, jobs[0])
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


def _steps_of(recipe: Supervised, job: TrainingJob) -> float:
    return recipe.epochs * Term(job.dataset, recipe.task.losses, batch_size=recipe.batch_size).steps_per_epoch


def _seconds_a_step(
    executor: Executor,
    recipe: Supervised,
    jobs: Sequence[TrainingJob],
    *,
    warm_up: int = _WARM_UP_STEPS,
    steps: int = _TRIAL_STEPS,
) -> float | None:
    """Wall time of one step of all these jobs: a longer and a shorter trial differ by steps alone.

    None where the trial fails. That decides nothing: a schedule crammed into a few steps may diverge where the whole
    does not, and a recipe that is broken will show it when models are trained.
    """
    plain = [replace(job, checkpoints=None) for job in jobs]
    taken: dict[int, float] = {}
    for count in (warm_up, warm_up + steps) * 2:  # the smaller reading of each: what else runs here only adds
        started = time.perf_counter()
        for result in executor.train(shortened(recipe, plain[0], count), plain, lambda _: None):
            if result.error is not None:
                return None
        seconds = time.perf_counter() - started
        taken[count] = min(seconds, taken.get(count, seconds))
    return max(taken[warm_up + steps] - taken[warm_up], 1e-9) / steps
