"""Amnesiac unlearning: take back what the batches did in which the forget set took part, and repair."""

from dataclasses import dataclass
from typing import ClassVar, cast

from expunge.data import MapDataset
from expunge.errors import StateError
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier, require_need
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.states import UpdateLog
from expunge.states.updates import subtract
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class Amnesiac(Method):
    """Subtract the recorded parameter updates of every batch with a forget example, then train on the retain set.

    The updates are those of `expunge.states.log_updates`, recorded at training. What later batches learned because the
    weights were as they were stays, so nothing is proven. Meant for few examples: where the forget set took part in
    every batch, as a whole class does, what is left is the model before training, and the repair trains it anew.
    What other libraries call amnesiac is teaching wrong labels, here `RandomLabel`.

    Args:
        repair_epochs: Passes over the retain set afterwards, 0 for none; only these read retained data. Default 10
            (code).
        learning_rate: Of Adam. Default 1e-3 (code).
        batch_size: 64 (code).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.STATE})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Graves et al. 2021 (arXiv 2010.10981), section 4.2"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    repair_epochs: float = 10
    learning_rate: float = 1e-3
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, 0, "repair_epochs")
        require_positive(self, "learning_rate")
        require_whole(self, "batch_size")

    def require(self, problem: Problem) -> None:
        """Raise where something is missing; a repair takes retained data too."""
        super().require(problem)
        if self.repair_epochs:
            require_need("Amnesiac", problem, Need.RETAIN)

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Subtract from a copy of the model and repair it."""
        log = problem.state
        if not isinstance(log, UpdateLog):
            raise StateError(
                f"the state is of kind {getattr(log, 'kind', None)!r}, where 'updates' is needed; pass the state that "
                "`log_updates` returned"
            )
        log.require_model(problem.model)
        left, steps = log.without(problem.task, cast(MapDataset, problem.forget))
        model = run.copy(problem.model)
        subtract(model, log, steps, run)
        if self.repair_epochs:
            term = Term(cast(MapDataset, problem.retain), problem.task.losses, batch_size=self.batch_size)
            run.train("repair", model, [term], Optimizer(self.learning_rate, Algorithm.ADAM), epochs=self.repair_epochs)
        return Forgotten(model.eval(), state=left.bound_to(model))
