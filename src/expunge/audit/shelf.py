"""The place of a fleet's models in the cache: what can be found again, and what is said where nothing can."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from expunge.audit.cache import Cache
from expunge.audit.data_names import DataNames
from expunge.audit.executors import Finished, TrainingJob, processes_here
from expunge.audit.identity import recipe_name, structure_name
from expunge.errors import DataError, ExpungeWarning, OutputError, ReferenceModelError
from expunge.problem import Recipe
from expunge.training import Supervised, reproducible, seed_globals


@dataclass
class Shelf:
    """A fleet's models in the cache; where there is none, every model is missing.

    Args:
        recipe: How the models are trained.
        jobs: Which they are.
        title: What they are, for notes.
        template: A model of the kind that a recipe makes which is a function of its own.

    Attributes:
        loud: Whether what is in the way is warned of, besides being noted.
        cache: Where the models are kept, if anywhere.
        names: Those of the models in the cache.
        notes: What the user should know.
    """

    recipe: Recipe
    jobs: Sequence[TrainingJob]
    title: str
    template: nn.Module | None
    loud: bool = field(default=False, init=False)
    cache: Cache | None = field(default=None, init=False)
    names: list[str] = field(default_factory=list[str], init=False)
    notes: list[str] = field(default_factory=list[str], init=False)

    def open(self, where: str | Path | bool | None) -> "Shelf":
        """Open the cache and name every model; a note says why that is not possible.

        Args:
            where: As in `FleetSettings`.

        Raises:
            OutputError: The folder that was asked for cannot be used.
        """
        self.loud = where is not None
        if where is False:
            return self
        try:
            identity = self._identity()
            self.cache = Cache.open(where if isinstance(where, str | Path) else None)
            data = DataNames(self.cache.key)
            with reproducible():
                self.names = [self.cache.name(identity, data.of(job.dataset), job.seed) for job in self.jobs]
        except (ReferenceModelError, DataError, OutputError) as error:
            if isinstance(error, OutputError) and self.loud:
                raise
            self.cache = None
            self._say(f"the {self.title} are not cached: {_shareable(error)}", warn=self.loud)
        return self

    def checkpoints(self, number: int) -> Path | None:
        """Where training of a model goes on after a kill."""
        return self.cache.checkpoints(self.names[number]) if self.cache is not None else None

    def load(self, number: int) -> Finished | None:
        """The model, if it is there, sound, and of the same structure."""
        saved = self.cache.load_model(self.names[number]) if self.cache is not None else None
        if self.cache is None or saved is None:
            return None
        tensors, notes = saved
        model = self._untrained(self.jobs[number].seed)
        if not isinstance(self.recipe, Supervised) and notes.get("structure") != structure_name(model):
            self._say(
                f"the {self.title} in the cache are of another network than the model that they would be read into, so "
                "they are trained again: give the problem a model just as the recipe makes it",
                warn=self.loud,
            )
            return None
        if notes.get("structure") != structure_name(model) or not _filled(model, tensors):
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
            self._say(f"models are not cached any further: {_shareable(error)}", warn=isinstance(error, OutputError))

    def _identity(self) -> str:
        if processes_here() > 1:
            raise ReferenceModelError("several processes train together")
        if not isinstance(self.recipe, Supervised):
            if self.template is None:
                raise ReferenceModelError("no model was given as a template to read weights into")
            structure_name(self.template)
        return recipe_name(_bare(self.recipe), _device(self.recipe))

    def _untrained(self, seed: int) -> nn.Module:
        """A model to read weights into."""
        if isinstance(self.recipe, Supervised):
            with reproducible(self.recipe.execution.threads):
                seed_globals(seed, "build")
                return self.recipe.build()
        return copy.deepcopy(cast(nn.Module, self.template)).requires_grad_(True)

    def _say(self, note: str, *, warn: bool) -> None:
        if note in self.notes:
            return
        self.notes.append(note)
        if warn:
            warnings.warn(note, ExpungeWarning, stacklevel=4)


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Put weights into a model, if they are its own in name and shape."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        return False
    return True


def _shareable(error: Exception) -> str:
    """The reason without the name of a folder, which may tell whose it is: notes go into the evidence."""
    if not isinstance(error, OutputError):
        return str(error)
    reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
    return f"cannot write to the folder that `expunge cache` shows ({reason or 'no space or no permission'})"


def _bare(recipe: Recipe) -> Recipe:
    """The same without what changes no weight."""
    if isinstance(recipe, Supervised):
        return replace(recipe, execution=replace(recipe.execution, workers=0, checkpoint_seconds=0, threads=None))
    return recipe


def _device(recipe: Recipe) -> str:
    on_cpu = isinstance(recipe, Supervised) and recipe.execution.device == "cpu"
    return torch.cuda.get_device_name() if torch.cuda.is_available() and not on_cpu else "cpu"
