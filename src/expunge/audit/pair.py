"""What the two models of a deletion show side by side, to somebody who has them both."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.audit.fairness import Fairness, fairness
from expunge.audit.reconstruction import Reconstruction, reconstruct
from expunge.data import MapDataset
from expunge.errors import DataError, ModelError
from expunge.problem import Problem
from expunge.states.curvature import CurvatureState
from expunge.tasks import Classification, Regression


@dataclass(frozen=True)
class Pair:
    """The original, which the problem holds, and the unlearned model."""

    problem: Problem
    unlearned: nn.Module
    seed: int

    def reconstruction(self) -> Reconstruction | None:
        """Whether the deleted row can be recovered; None where more than a linear head differs, or rows are few."""
        problem, state = self.problem, self.problem.state
        if problem.forget is None or problem.retain is None:
            return None
        if not isinstance(problem.task, Classification | Regression):
            return None
        known = state.settings if isinstance(state, CurvatureState) else None
        try:
            return reconstruct(
                problem.model,
                self.unlearned,
                problem.task,
                problem.forget,
                problem.retain,
                loss=known.loss.value if known else None,
                l2=known.l2 if known else 0.0,
                seed=self.seed,
            )
        except (ModelError, DataError):
            return None

    def fairness(self, holdout: MapDataset | None, subgroups: Mapping[str, NDArray[np.str_]]) -> dict[str, Fairness]:
        """Figures by subgroup before and after; of tasks of two classes, and with fairlearn installed, else none.

        Args:
            holdout: Examples that neither model was trained on.
            subgroups: By name, the subgroup of each of them: (examples,).
        """
        task = self.problem.task
        if holdout is None or not isinstance(task, Classification) or task.classes != 2:
            return {}
        if importlib.util.find_spec("fairlearn") is None:
            return {}
        return {
            name: fairness(self.problem.model, self.unlearned, task, holdout, values, seed=self.seed)
            for name, values in subgroups.items()
            if len(set(values.tolist())) > 1
        }
