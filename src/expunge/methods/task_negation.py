"""Task negation: taking away what learning the forget set adds to the weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from expunge.methods._language import LanguageMethod, Student
from expunge.methods.base import Maturity
from expunge.problem import Problem
from expunge.settings import require_positive
from expunge.training import Run, Term


@dataclass(frozen=True)
class TaskNegation(LanguageMethod):
    """Train a copy on the forget set and return original - scale · (copy - original).

    Args:
        scale: 5 (Shi et al. 2024, MUSE, arXiv 2407.06460, code); Ilharco et al. choose from 0 to 1 on held-out data.
    """

    paper: ClassVar = "Ilharco et al. 2023 (arXiv 2212.04089), section 3"
    maturity: ClassVar = Maturity.STABLE

    scale: float = 5.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_positive(self, "scale")

    def terms(self, student: Student) -> list[Term]:
        """The likelihood of the forget set, which is raised."""
        return [Term(student.forget, student.task.losses, batch_size=self.batch_size)]

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Learn the forget set, and go from the original as far to the other side."""
        learned, negated = self.trained(problem, run).finished(), run.copy(problem.model)
        with torch.no_grad():
            for own, other in zip(negated.parameters(), learned.parameters(), strict=True):
                own.sub_(self.scale * (other - own))
        return negated.eval()
