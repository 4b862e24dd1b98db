"""Outcomes of trials in the cache of the fleet, so that what was killed goes on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from expunge.audit.auditing import References
from expunge.audit.cache import Cache
from expunge.audit.data_names import DataNames
from expunge.audit.identity import recipe_name
from expunge.errors import DataError, OutputError, ReferenceModelError
from expunge.methods import Method
from expunge.storage import digest_model
from expunge.training import Execution


@dataclass(frozen=True)
class Tried:
    """What a trial came to.

    Attributes:
        gap: From retraining; None where the method diverged.
        seconds: Wall time of the method.
        examples: That passed forward and backward; 0 where it diverged.
    """

    gap: float | None
    seconds: float
    examples: int


@dataclass(frozen=True)
class TrialShelf:
    """Outcomes by what they follow from; where that cannot be named, none is kept."""

    cache: Cache | None
    execution: Execution
    references: References
    known: Sequence[str]

    @classmethod
    def open(cls, references: References, execution: Execution, folder: str | Path | bool | None) -> "TrialShelf":
        """The shelf for trials that are held against these references.

        Raises:
            OutputError: The cache folder that was asked for cannot be used.
        """
        plain = replace(execution, progress=False, workers=0, checkpoint_seconds=0, threads=None)
        if folder is False:
            return cls(None, plain, references, ())
        asked = isinstance(folder, str | Path)
        try:
            cache = Cache.open(folder if asked else None)
            names = DataNames(cache.key)
            known = [
                *(names.of(data) for data in references.problem.datasets().values()),
                *(digest_model(model) for model in (references.problem.model, *references.oracles.models)),
            ]
        except (ReferenceModelError, DataError, OutputError):
            if asked:
                raise
            return cls(None, plain, references, ())
        return cls(cache, plain, references, known)

    def load(self, method: Method, seed: int) -> Tried | None:
        """The outcome of this method, if it was tried before."""
        name = self._name(method, seed)
        found = self.cache.load_arrays(name) if self.cache is not None and name is not None else None
        if found is None:
            return None
        gap, seconds, examples = found[0]["outcome"].tolist()
        return Tried(None if math.isnan(gap) else gap, seconds, int(examples))

    def save(self, method: Method, seed: int, outcome: Tried) -> None:
        """Keep the outcome of this method."""
        name = self._name(method, seed)
        if self.cache is not None and name is not None:
            gap = math.nan if outcome.gap is None else outcome.gap
            values = torch.tensor([gap, outcome.seconds, outcome.examples], dtype=torch.double)
            self.cache.save_arrays(name, {"outcome": values}, {})

    def _name(self, method: Method, seed: int) -> str | None:
        if self.cache is None:
            return None
        problem, run = self.references.problem, self.references.sitting.run
        what = (method, problem.task, self.execution, problem.classes, self.references.settings)
        try:
            known = recipe_name(what, str(run.device))
        except ReferenceModelError:
            return None
        return self.cache.name("trial with its cost", known, *self.known, seed, run.seed)
