"""Training many models by one recipe: what is in the cache is read from it, the rest trained in the fastest way."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from expunge.audit.choosing import Choice, Expected, FleetSettings, choose, expect
from expunge.audit.data_names import DataNames
from expunge.audit.executors import Executor, Finished, TrainingJob
from expunge.audit.shelf import Shelf
from expunge.data import MapDataset, View
from expunge.errors import DataError, NonFiniteModelError, ReferenceModelError
from expunge.problem import Recipe, require_finite
from expunge.storage import digest_model
from expunge.training import Supervised, bar


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

    def train(
        self,
        settings: FleetSettings | None = None,
        *,
        progress: bool = True,
        announce: Callable[[Expected], None] | None = None,
    ) -> Trained:
        """Train every job, or read it from the cache.

        A fleet that was killed goes on: models that were finished are read from the cache, and one under way continues
        where the recipe is `Supervised` and trains one by one.

        Args:
            settings: How and where.
            progress: Show a bar on a terminal.
            announce: Is told what is to be trained and about how long it takes, before anything is trained.

        Raises:
            ReferenceModelError: The recipe failed, or ignores its seed or its data. What was finished stays cached.
            MissingNeedError: Ray is asked for and not installed.
            SettingError: The executor that was asked for cannot train these models.
            OutputError: The cache folder that was asked for cannot be used.
        """
        settings = settings or FleetSettings()
        recipe = _quiet(self.recipe)
        shelf = Shelf(recipe, self.jobs, self.title, self.template).open(settings.cache)
        jobs = [replace(job, checkpoints=shelf.checkpoints(number)) for number, job in enumerate(self.jobs)]
        results: dict[int, Finished] = {
            number: found for number in range(len(jobs)) if (found := shelf.load(number)) is not None
        }
        cached, distinct = len(results), _Distinct(jobs)
        for number, finished in results.items():
            distinct.require(number, cast(nn.Module, finished.model))
        missing = [number for number in range(len(jobs)) if number not in results]
        chosen = [jobs[number] for number in missing]
        executor, choice = self._choose(recipe, chosen, settings, list(results.values()), progress, announce)
        with (
            bar(self.title, len(jobs), done=cached, enabled=progress) as display,
            closing(executor.train(recipe, chosen, lambda note: display.advance(0, note))) as coming,
        ):
            for result in coming if chosen else ():
                number = missing[result.number]
                finished = _sound(result, jobs[number], choice)
                shelf.save(number, finished)
                results[number] = finished
                distinct.require(number, cast(nn.Module, finished.model))
                display.advance(1, f"{finished.seconds:.1f} s each" if finished.seconds is not None else "")
        ordered = [results[number] for number in range(len(jobs))]
        models = [cast(nn.Module, finished.model) for finished in ordered]
        return Trained(models, [finished.seconds for finished in ordered], cached, choice, tuple(shelf.notes))

    def _choose(
        self,
        recipe: Recipe,
        jobs: Sequence[TrainingJob],
        settings: FleetSettings,
        found: Sequence[Finished],
        progress: bool,
        announce: Callable[[Expected], None] | None,
    ) -> tuple[Executor, Choice]:
        with bar(f"{self.title}: timing", 1, enabled=progress and len(jobs) > 0) as display:
            executor, choice = choose(recipe, jobs, settings)
            if announce is None:
                return executor, choice
            seconds = [finished.seconds for finished in found]
            expected = expect(self.title, recipe, jobs, executor, choice, seconds)
            display.advance()
        announce(expected)
        return executor, choice


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


def _quiet(recipe: Recipe) -> Recipe:
    """The same without bars of its own: the fleet has one."""
    if isinstance(recipe, Supervised):
        return replace(recipe, execution=replace(recipe.execution, progress=False))
    return recipe
