"""Shadows: models trained on everything and then unlearned by the audited method, as the original was.

They show what a method does to models that differ by chance alone, which one unlearned model cannot: U-LiRA, KLoM and
epsilon by example are made from them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from expunge.audit.cache import Cache
from expunge.audit.choosing import FleetSettings
from expunge.audit.data_names import DataNames
from expunge.audit.executors import TrainingJob
from expunge.audit.fleet import Fleet
from expunge.audit.identity import recipe_name
from expunge.audit.measuring import Announce, tell_of_measuring
from expunge.audit.portrait import FORGET, Floats, Sitting
from expunge.data import MapDataset, union
from expunge.errors import DataError, MissingNeedError, OutputError, ReferenceModelError
from expunge.methods import Method
from expunge.problem import DeletionState, Problem, Recipe
from expunge.states import HeadOptimum, Sharded
from expunge.storage import digest_model
from expunge.training import Execution, bar
from expunge.training.seeds import derive
from expunge.unlearning import unlearn


@dataclass(frozen=True)
class ShadowSignals:
    """What a membership attack looks at in shadows.

    Attributes:
        trained: Before they were unlearned, on the forget set: (shadows, examples).
        unlearned: Afterwards, by set: (shadows, examples) each.
    """

    trained: Floats
    unlearned: Mapping[str, Floats]


@dataclass(frozen=True)
class Shadows:
    """Trained shadows of one problem; several methods can unlearn them.

    Attributes:
        models: Trained on forget and retain set.
        seed: Of the audit.
        fleet: Where signals are kept.
        notes: What the user should know of their training.
        announce: Is told, once one is unlearned, how long the others take.
    """

    problem: Problem
    models: Sequence[nn.Module]
    seed: int
    fleet: FleetSettings
    notes: tuple[str, ...] = ()
    announce: Announce | None = None

    @classmethod
    def train(
        cls,
        problem: Problem,
        count: int,
        seed: int,
        *,
        progress: bool,
        settings: FleetSettings | None = None,
        announce: Announce | None = None,
    ) -> "Shadows":
        """Train shadows by the problem's recipe, each with a seed of its own, or read them from the cache.

        Raises:
            MissingNeedError: The problem has no recipe, no forget set or no retain set.
            ReferenceModelError: The recipe failed, or does not train models as the original was trained.
        """
        recipe, whole = require_trainable(problem)
        jobs = [TrainingJob(whole, shadow_seed(seed, number), f"shadow {number + 1}") for number in range(count)]
        trained = Fleet(recipe, jobs, "shadows", problem.model).train(settings, progress=progress, announce=announce)
        return cls(problem, trained.models, seed, settings or FleetSettings(), trained.notes, announce)

    def signals(self, method: Method | None, sitting: Sitting) -> ShadowSignals:
        """Unlearn every shadow by a method and look at it; signals that are kept from before are read instead.

        Raises:
            MissingNeedError: The method is not known, or needs a state that shadows have not.
        """
        method = require_unlearnable(self.problem, method)
        shelf = _SignalShelf.open(self, method, sitting)
        trained, unlearned = list[Floats](), list[dict[str, Floats]]()
        with bar("unlearning shadows", len(self.models), enabled=sitting.run.execution.progress) as display:
            for number, model in enumerate(self.models):
                trained.append(sitting.signals(sitting.run.frozen(model))[FORGET])
                found = shelf.load(number)
                if found is None:
                    started = time.monotonic()
                    found = sitting.signals(self._unlearned(number, method, sitting.run.execution))
                    shelf.save(number, found)
                    left = len(self.models) - number - 1
                    tell_of_measuring(self.announce if number == 0 else None, left, time.monotonic() - started)
                unlearned.append(found)
                display.advance()
        return ShadowSignals(
            np.stack(trained), {name: np.stack([each[name] for each in unlearned]) for name in unlearned[0]}
        )

    def _unlearned(self, number: int, method: Method, execution: Execution) -> nn.Module:
        problem = replace(self.problem, model=self.models[number], state=self._state(number))
        seed = derive(self.seed, "unlearned shadow", number) % 2**31
        return unlearn(problem, method, seed=seed, execution=replace(execution, progress=False)).model

    def _state(self, number: int) -> DeletionState | None:
        """Of the shadow itself, where its recipe can say it; the state of the original speaks of no other model."""
        recipe, whole = require_trainable(self.problem)
        if not isinstance(recipe, Sharded):
            return None
        return recipe.state_of(self.models[number], whole, shadow_seed(self.seed, number))


def shadow_seed(seed: int, number: int) -> int:
    """The seed of one shadow of an audit."""
    return derive(seed, "shadow", number) % 2**31


def require_trainable(problem: Problem) -> tuple[Recipe, MapDataset]:
    """The recipe of a problem's shadows and what they are trained on; checked before anything is trained.

    Raises:
        MissingNeedError: The problem has no recipe, no forget set or no retain set.
        ReferenceModelError: The recipe does not train models as the original was trained.
    """
    recipe = problem.recipe
    if recipe is None or problem.forget is None or problem.retain is None:
        raise MissingNeedError(
            "shadows are trained on forget and retain set by the recipe: give the problem `forget=`, `retain=` and "
            "`recipe=`, or audit with shadows=0"
        )
    if isinstance(recipe, HeadOptimum) and recipe.sigma > 0:
        raise ReferenceModelError(
            f"the recipe adds noise of sigma {recipe.sigma:g}: it draws the reference of a certificate and does not "
            "train models as the original was trained, which shadows must be; audit with shadows=0: what a single "
            "example may show is what the certificate bounds"
        )
    return recipe, union(problem.forget, problem.retain)


def require_unlearnable(problem: Problem, method: Method | None) -> Method:
    """The method, if shadows of the problem can be unlearned by it; checked before anything is trained.

    Raises:
        MissingNeedError: The method is not known, or needs a state that shadows have not.
    """
    if method is None:
        raise MissingNeedError(
            "shadows are unlearned by the method that made the audited model, which is not known of a result read "
            "from a folder: pass `method=` to Unlearned.load, or audit with shadows=0"
        )
    method.require(problem)
    if problem.state is None or isinstance(problem.recipe, Sharded):
        return method
    try:
        method.require(replace(problem, state=None))
    except MissingNeedError as error:
        raise MissingNeedError(
            f"{type(method).__name__} deletes by what was recorded of the original (a state of kind "
            f"{problem.state.kind!r}), and shadows are other models, of which nothing is recorded; audit with "
            "shadows=0, or unlearn by a method that needs no state. Shadows of a `Sharded` recipe have one"
        ) from error
    return method


@dataclass(frozen=True)
class _SignalShelf:
    """Signals of unlearned shadows in the cache; where they cannot be named, none is kept."""

    cache: Cache | None
    names: Sequence[str]

    @classmethod
    def open(cls, shadows: Shadows, method: Method, sitting: Sitting) -> "_SignalShelf":
        folder, problem = shadows.fleet.cache, shadows.problem
        if folder is False:
            return cls(None, ())
        execution = replace(sitting.run.execution, progress=False, workers=0, checkpoint_seconds=0, threads=None)
        try:
            cache = Cache.open(None if isinstance(folder, bool) else folder)
            known = recipe_name((method, problem.task, execution, problem.classes), str(sitting.run.device))
            data = DataNames(cache.key)
            given = [
                data.of(dataset) if dataset is not None else ""
                for dataset in (problem.forget, problem.retain, problem.holdout, *sitting.sets.values())
            ]
            names = [
                cache.name("unlearned shadow", known, *given, shadows.seed, number, digest_model(model))
                for number, model in enumerate(shadows.models)
            ]
        except (ReferenceModelError, DataError, OutputError):
            return cls(None, ())  # why, the fleet that trained the shadows has said
        return cls(cache, names)

    def load(self, number: int) -> dict[str, Floats] | None:
        found = self.cache.load_arrays(self.names[number]) if self.cache is not None else None
        return {name: values.numpy() for name, values in found[0].items()} if found is not None else None

    def save(self, number: int, signals: Mapping[str, Floats]) -> None:
        if self.cache is not None:
            tensors: dict[str, Tensor] = {name: torch.from_numpy(values) for name, values in signals.items()}
            self.cache.save_arrays(self.names[number], tensors, {})
