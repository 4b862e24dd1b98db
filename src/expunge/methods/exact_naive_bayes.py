"""Gaussian naive Bayes without some rows, from sums alone."""

from dataclasses import dataclass
from typing import ClassVar

from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier
from expunge.methods.exactness import forget_rows
from expunge.problem import Problem
from expunge.states import NaiveBayesStatistics
from expunge.tasks import Classification
from expunge.training import Run


@dataclass(frozen=True)
class ExactNaiveBayes(Method):
    """Refit a Gaussian naive Bayes classifier to everything but the forget set.

    It needs the forget rows and a state of kind `naive-bayes`, and no other data.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.STATE})
    tier: ClassVar = Tier.EXACT
    tasks: ClassVar = (Classification,)
    paper: ClassVar = "Cao and Yang 2015, Towards Making Systems Forget with Machine Unlearning (summation form)"
    maturity: ClassVar = Maturity.STABLE

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Down-date the sums and compute means, variances and priors."""
        return forget_rows(problem, run, NaiveBayesStatistics)
