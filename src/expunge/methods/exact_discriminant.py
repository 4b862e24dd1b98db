"""Linear discriminant analysis without some rows, from sums alone."""

from dataclasses import dataclass
from typing import ClassVar

from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.exactness import forget_rows
from expunge.problem import Problem
from expunge.states import DiscriminantStatistics
from expunge.tasks import Classification
from expunge.training import Run


@dataclass(frozen=True)
class ExactDiscriminant(Method):
    """Refit a linear layer by linear discriminant analysis to everything but the forget set.

    It needs the forget rows and a state of kind `lda`, and no other data.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.STATE})
    tier: ClassVar = Tier.EXACT
    tasks: ClassVar = (Classification,)
    paper: ClassVar = "Cao and Yang 2015 (summation form), here for linear discriminants"
    maturity: ClassVar = Maturity.STABLE

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Down-date the sums and compute the log posteriors."""
        return forget_rows(problem, run, DiscriminantStatistics)
