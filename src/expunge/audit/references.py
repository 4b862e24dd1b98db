"""Oracles: models retrained without the forget set, the reference for everything an audit measures."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from expunge.data import MapDataset
from expunge.errors import MissingNeedError, ReferenceModelError, SettingError
from expunge.problem import Problem, Recipe, require_finite
from expunge.storage import digest_model
from expunge.training import bar, reproducible, seed_globals
from expunge.training.seeds import derive


@dataclass(frozen=True)
class Oracles:
    """Retrained models, and the wall time of training each where it was done here."""

    models: Sequence[nn.Module]
    seconds: Sequence[float] = ()

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
    def train(cls, problem: Problem, count: int, seed: int, *, progress: bool) -> "Oracles":
        """Train `count` oracles by the problem's recipe, each with a seed of its own.

        Raises:
            SettingError: Fewer than two are asked for.
            MissingNeedError: The problem has no recipe or no retain set.
            ReferenceModelError: The recipe failed, or ignores its seed.
        """
        _require_several(count)
        if problem.recipe is None or problem.retain is None:
            missing = "a recipe" if problem.recipe is None else "the retain set"
            raise MissingNeedError(
                f"oracles are retrained, which needs {missing}: give the problem `recipe=` and `retain=`, or pass "
                "models that you retrained without the forget set as `oracles=[...]`"
            )
        models: list[nn.Module] = []
        seconds: list[float] = []
        with bar("oracles", count, enabled=progress) as display:
            for number in range(count):
                started = time.monotonic()
                models.append(_train(problem.recipe, problem.retain, derive(seed, "oracle", number), number))
                seconds.append(time.monotonic() - started)
                _require_different(models[:2])
                display.advance(1, f"{seconds[-1]:.1f} s each")
        return cls(models, seconds)


def _require_several(count: int) -> None:
    if count < 2:
        raise SettingError(f"an audit compares with at least two oracles, and three for a verdict, not {count}")


def _require_different(models: Sequence[nn.Module]) -> None:
    digests = [digest_model(model) for model in models]
    for one, other in combinations(range(len(digests)), 2):
        if digests[one] == digests[other]:
            raise ReferenceModelError(
                f"oracles {one + 1} and {other + 1} are equal bit for bit: the recipe ignores its seed (or one "
                "model was passed twice), so nothing is known of how retraining varies"
            )


def _train(recipe: Recipe, retain: MapDataset, seed: int, number: int) -> nn.Module:
    try:
        with reproducible():
            seed_globals(seed)
            model = recipe(retain, seed % 2**31)
    except Exception as error:
        raise ReferenceModelError(
            f"the recipe failed while training oracle {number + 1} with {type(error).__name__}; run it on the retain "
            "set by itself to see its message, which is left out here because it may quote data"
        ) from error
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ReferenceModelError(f"the recipe returned a {type(model).__name__}, not a torch module")
    return model.eval()
