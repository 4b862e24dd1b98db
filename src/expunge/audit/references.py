"""Oracles: models retrained without the forget set, the reference for everything an audit measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from expunge.audit.choosing import Choice, Expected, FleetSettings
from expunge.audit.executors import TrainingJob
from expunge.audit.fleet import Fleet
from expunge.data import MapDataset, subset
from expunge.errors import MissingNeedError, ReferenceModelError, SettingError
from expunge.problem import Problem, Recipe, require_finite
from expunge.storage import digest_model
from expunge.training import Supervised
from expunge.training.seeds import derive


@dataclass(frozen=True)
class Oracles:
    """Retrained models, and how they came about where they were trained here.

    Attributes:
        models: In evaluation mode.
        seconds: Wall time of training one by itself, for those of which it is known.
        choice: In which way they were trained.
        cached: How many came from the cache.
        notes: What the user should know of the training.
    """

    models: Sequence[nn.Module]
    seconds: Sequence[float] = ()
    choice: Choice | None = None
    cached: int = 0
    notes: tuple[str, ...] = ()

    @property
    def together(self) -> bool:
        """Whether they were trained as one, so that `seconds` are what a trial led to expect of each by itself."""
        return self.choice is not None and self.choice.executor == "batched"

    def __post_init__(self) -> None:
        """Refuse references that cannot serve.

        Raises:
            SettingError: There are fewer than two.
            NonFiniteModelError: One holds NaN or infinity.
            ReferenceModelError: Two are equal bit for bit.
        """
        _require_several(len(self.models))
        for model in self.models:
            require_finite(model)
        _require_different(self.models)

    @classmethod
    def train(
        cls,
        problem: Problem,
        count: int,
        seed: int,
        *,
        progress: bool,
        settings: FleetSettings | None = None,
        announce: Callable[[Expected], None] | None = None,
    ) -> "Oracles":
        """Train `count` oracles by the problem's recipe, each with a seed of its own, or read them from the cache.

        A recipe that is a function of its own is also run on half of the retain set, to see that it heeds its data.
        `announce` is told what is to be trained and about how long it takes, before anything is trained.

        Raises:
            SettingError: Fewer than two are asked for, or the executor asked for cannot train them.
            MissingNeedError: The problem has no recipe or no retain set.
            ReferenceModelError: The recipe failed, or ignores its seed or its data.
            OutputError: The cache folder that was asked for cannot be used.
        """
        _require_several(count)
        if problem.recipe is None or problem.retain is None:
            missing = "a recipe" if problem.recipe is None else "the retain set"
            raise MissingNeedError(
                f"oracles are retrained, which needs {missing}: give the problem `recipe=` and `retain=`, or pass "
                "models that you retrained without the forget set as `oracles=[...]`"
            )
        seeds = [oracle_seed(seed, number) for number in range(count)]
        jobs = [TrainingJob(problem.retain, own, f"oracle {number + 1}") for number, own in enumerate(seeds)]
        fleet = Fleet(problem.recipe, jobs, "oracles", problem.model)
        trained = fleet.train(settings, progress=progress, announce=announce)
        notes = trained.notes
        if type(problem.recipe) is not Supervised:  # which is known to use nothing but its data
            template = problem.model
            notes += _check_data(problem.recipe, problem.retain, seeds[0], trained.models[0], template, settings)
        known = [seconds for seconds in trained.seconds if seconds is not None]
        return cls(trained.models, known, trained.choice, trained.cached, notes)


def oracle_seed(seed: int, number: int) -> int:
    """The seed of one oracle of an audit."""
    return derive(seed, "oracle", number) % 2**31


def _check_data(
    recipe: Recipe,
    retain: MapDataset,
    seed: int,
    oracle: nn.Module,
    template: nn.Module,
    settings: FleetSettings | None,
) -> tuple[str, ...]:
    """Train on every other retained example with an oracle's seed: another model must come of it."""
    half = subset(retain, torch.arange(0, len(retain), 2))
    job = TrainingJob(half, seed, "a model on half of the retain set")
    try:
        trained = Fleet(recipe, [job], "check of the recipe", template).train(settings, progress=False)
    except ReferenceModelError as error:
        return (f"whether the recipe heeds its data is not known: {error}",)
    if len(half) < len(retain) and digest_model(trained.models[0]) == digest_model(oracle):
        raise ReferenceModelError(
            "the recipe ignores its data: trained on half of the retain set it makes the same model bit for bit as "
            "on all of it, so an oracle may well have seen the forget set; a recipe must use nothing but the dataset "
            "that it is given"
        )
    return ()


def _require_several(count: int) -> None:
    if count < 2:
        raise SettingError(f"an audit compares with at least two oracles, and three for a verdict, not {count}")


def _require_different(models: Sequence[nn.Module]) -> None:
    digests = [digest_model(model) for model in models]
    for one, other in combinations(range(len(digests)), 2):
        if digests[one] == digests[other]:
            raise ReferenceModelError(
                f"oracles {one + 1} and {other + 1} are equal bit for bit: one model was passed twice, or the recipe "
                "ignores its seed, so nothing is known of how retraining varies"
            )
