"""From a share of a retrain to passes over the retain set."""

from expunge.errors import MissingNeedError, SettingError
from expunge.problem import Problem
from expunge.training import Supervised

FORWARD = 1 / 3
"""What a forward pass costs beside one with the backward pass, which is twice as long."""


def passes_within(problem: Problem, budget: float, overhead: float) -> float:
    """Passes over the retain set that a budget leaves for training.

    Args:
        problem: Its recipe says how many passes a retrain takes.
        budget: Share of a retrain that everything may cost together.
        overhead: What is done besides training, in passes over the retain set, forward and backward.

    Raises:
        MissingNeedError: The recipe does not tell its passes.
        SettingError: Nothing is left.
    """
    recipe = problem.recipe
    if not isinstance(recipe, Supervised):
        raise MissingNeedError(
            "budget is a share of a retrain, of whose passes only a `Supervised` recipe tells: pass `recipe=` one, or "
            "set `epochs` instead"
        )
    left = budget * recipe.epochs - overhead
    if left <= 0:
        raise SettingError(
            f"budget must be above {overhead / recipe.epochs:.3g} here, not {budget!r}: what is done besides training "
            f"costs {overhead:.3g} passes over the retain set, of the {recipe.epochs:g} that a retrain takes; raise "
            "it, or set `epochs` instead"
        )
    return left
