"""IdkDPO: preferring "I do not know" to the answer that is to be forgotten."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import DataError, SettingError
from expunge.methods._labelled import log_probability
from expunge.methods._language import Rows, Student, WithRetainLoss, chosen
from expunge.methods.base import Maturity
from expunge.settings import require_positive
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Objective

REFUSALS = (
    "I do not know.",
    "I am not able to say.",
    "That is not something I have learned.",
    "I have no information about this.",
)


@dataclass(frozen=True)
class IdkDPO(WithRetainLoss):
    """Direct preference optimisation with a refusal as the answer preferred, besides the retain term.

    Minimise -(2 / beta) · log sigmoid(beta · (log ratio of the refusal - log ratio of the answer)), where a log ratio
    is the log-probability of all tokens together under the model, less that under the original. Each forget example
    gets one refusal, drawn once.

    Args:
        beta: .1 (Maini et al. 2024, code; OpenUnlearning).
        refusals: What is preferred. Default: four sentences of ours; TOFU has a hundred in `idontknow.jsonl`.
    """

    paper: ClassVar = "Maini et al. 2024 (arXiv 2401.06121); Rafailov et al. 2023 (arXiv 2305.18290)"
    maturity: ClassVar = Maturity.STABLE

    beta: float = 0.1
    refusals: tuple[str, ...] = REFUSALS

    def __post_init__(self) -> None:
        """Check the ranges, and that there is something to prefer."""
        super().__post_init__()
        require_positive(self, "beta")
        if not self.refusals or not all(sentence.strip() for sentence in self.refusals):
            raise SettingError("refusals must hold sentences, at least one and none of them empty")

    def forget_objective(self, student: Student) -> Objective:
        """The preference loss; the original's log-probabilities of both answers are computed here, once."""
        refused = self._refused(student)
        lost, won = student.log_probabilities(student.forget), student.log_probabilities(refused)

        def objective(model: nn.Module, batch: TextBatch) -> Tensor:
            numbers = batch["numbers"]
            preferred = student.run.to_device(student.task.collate(chosen(refused, numbers)))
            answer, refusal = (log_probability(student.task, model, each) for each in (batch, preferred))
            return dpo_loss(refusal - won[numbers], answer - lost[numbers], self.beta)

        return objective

    def _refused(self, student: Student) -> Rows:
        """The forget examples with a refusal for an answer."""
        drawn = torch.randint(
            len(self.refusals), (len(student.forget),), generator=student.run.generator("refusals")
        ).tolist()
        found: list[dict[str, Any]] = []
        for row, number in zip(student.forget, drawn, strict=True):
            prompt = _prompt(row)
            answer = student.task.answer_tokens(self.refusals[number])
            labels = torch.cat([torch.full_like(prompt, -100), answer])
            found.append(row | {"input_ids": torch.cat([prompt, answer]), "labels": labels})
        return found


def dpo_loss(preferred: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-(2 / beta) · log sigmoid(beta · (preferred - rejected)) of two log ratios: (batch,)."""
    return -2 / beta * F.logsigmoid(beta * (preferred - rejected))


def _prompt(row: dict[str, Any]) -> Tensor:
    """The tokens before the first that carries a loss."""
    labelled = (row["labels"] != -100).nonzero()
    first = int(labelled[0])
    if first == 0:
        raise DataError(
            "an example of the forget set has no prompt that a refusal could answer: all of its tokens carry a loss; "
            "give questions with answers, or mark the prompt with `prompt_length`"
        )
    return row["input_ids"][:first]
