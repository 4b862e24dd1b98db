"""Ridge regression without some rows, from sums alone."""

from dataclasses import dataclass
from typing import ClassVar

from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.exactness import forget_rows
from expunge.problem import Problem
from expunge.states import RidgeStatistics
from expunge.tasks import Classification, Regression
from expunge.training import Run


@dataclass(frozen=True)
class ExactRidge(Method):
    """Refit a linear layer by ridge regression to everything but the forget set.

    It needs the forget rows and a state of kind `ridge`, and no other data. The settings of the fit are those that
    were recorded.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.STATE})
    tier: ClassVar = Tier.EXACT
    tasks: ClassVar = (Regression, Classification)
    paper: ClassVar = "Cao and Yang 2015 (summation form), here for ridge regression"
    maturity: ClassVar = Maturity.STABLE

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Down-date the sums and solve for the weights."""
        return forget_rows(problem, run, RidgeStatistics)
