"""Retraining: the reference that every other method is measured against."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn

from expunge.data import MapDataset
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem, Recipe
from expunge.training import Run, Supervised


@dataclass(frozen=True)
class Retrain(Method):
    """Train a new model without the forget set, by the problem's recipe.

    The result is exact as long as the recipe uses nothing but the data it is handed. With a `Supervised` recipe it
    can be resumed within; another recipe starts again from its beginning.
    """

    needs: ClassVar = frozenset({Need.RETAIN, Need.RECIPE})
    tier: ClassVar = Tier.EXACT
    paper: ClassVar = "definition"
    maturity: ClassVar = Maturity.STABLE

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train on the retain set from scratch."""
        retain, recipe = cast(MapDataset, problem.retain), cast(Recipe, problem.recipe)
        model = recipe.fit(retain, run) if isinstance(recipe, Supervised) else recipe(retain, run.seed)
        return model.eval()
