"""What methods for language models share: the model under way, what the original said, and the retain term.

No second model is kept for reference. What the original said of the examples that will be visited is computed once,
before the first step: a number a sequence, or, where whole distributions are needed, what its head saw at each token
(features instead of a vocabulary) besides that head.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import MapDataset, subset
from expunge.methods._labelled import labelled, log_probability, mean_losses
from expunge.methods.adapters import Adapted, LoraSettings, adapted
from expunge.methods.base import Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_one_of, require_positive, require_whole
from expunge.tasks import CausalLM
from expunge.tasks._text import NUMBER
from expunge.tasks.causal_lm import TextBatch
from expunge.training import Algorithm, Objective, Optimizer, Run, Term, over_batches, seed_globals

Rows = list[dict[str, Any]]

T = TypeVar("T")

_AGREE = 1e-3  # relative: what rounding may do to logits


@dataclass(frozen=True)
class LanguageMethod(Method):
    """Settings that all these methods have.

    Args:
        learning_rate: Of AdamW. Default 1e-5 (Dorna et al. 2025, OpenUnlearning, code), constant (ours).
        epochs: Passes over the forget set. Default 10 (ibid.).
        batch_size: Of either set. Default 32 (ibid., 8 with 4 accumulated).
        weight_decay: 0 (ibid.).
        clip_norm: Largest gradient norm, or None for none. Default 1 (Hugging Face's Trainer, which it uses).
        adapter: Train a LoRA adapter instead of all weights; the reference is then the adapter switched off.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET})
    tier: ClassVar[Tier] = Tier.EMPIRICAL
    tasks: ClassVar = (CausalLM,)

    learning_rate: float = 1e-5
    epochs: float = 10
    batch_size: int = 32
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    adapter: LoraSettings | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "epochs", "clip_norm")
        require_whole(self, "batch_size")
        require_at_least(self, 0, "weight_decay")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Train a copy of the model, or an adapter on it, on the method's terms."""
        return self.trained(problem, run).finished()

    def trained(self, problem: Problem, run: Run) -> "Student":
        """A copy of the model after training on the terms."""
        student = Student.prepare(problem, run, self.adapter, self.batch_size)
        run.train("unlearn", student.model, self.terms(student), self.optimizer, epochs=self.epochs)
        return student

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser of the only phase."""
        return Optimizer(self.learning_rate, Algorithm.ADAMW, weight_decay=self.weight_decay, clip_norm=self.clip_norm)

    @abstractmethod
    def terms(self, student: "Student") -> list[Term]:
        """What is minimised, the term of the forget set first."""

    def retained(self, student: "Student") -> Rows:
        """The retained examples that so many steps can visit, so that no more is computed of the others."""
        steps = math.ceil(self.epochs * math.ceil(len(student.forget) / self.batch_size))
        return student.drawn(steps * self.batch_size)


@dataclass(frozen=True)
class WithRetainLoss(LanguageMethod):
    """A forget objective besides a term that keeps the model on the retain set.

    Args:
        forget_weight: Weight of the forget objective.
        retain_weight: Weight of the retain term.
        retain_loss: `nll`, the negative log-likelihood of retained answers, or `kl`, the divergence KL(original ||
            model) of the predictions at their tokens.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET, Need.RETAIN})

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    retain_loss: Literal["nll", "kl"] = "nll"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require_positive(self, "forget_weight", "retain_weight")
        require_one_of(self, "retain_loss", ("nll", "kl"))

    @abstractmethod
    def forget_objective(self, student: "Student") -> Objective:
        """What is minimised on the forget set: (batch,)."""

    def terms(self, student: "Student") -> list[Term]:
        """The forget objective and the retain term, one batch of each a step."""
        retain = self.retained(student)
        keep = (
            partial(mean_losses, student.task)
            if self.retain_loss == "nll"
            else student.divergence_from_original(retain)
        )
        return [
            Term(student.forget, self.forget_objective(student), self.forget_weight, self.batch_size),
            Term(retain, keep, self.retain_weight, self.batch_size),
        ]


@dataclass(frozen=True)
class Reference:
    """The original's predictions at the labelled tokens of some examples, without the original.

    Attributes:
        seen: (tokens, features) what its head saw, of one example after another; or its logits, where the head is not
            a plain matrix product (some models scale or cap them).
        starts: (examples + 1,) where each example begins.
        weight: (vocabulary, features) of its head; None where `seen` are logits.
        bias: (vocabulary,) of its head.
    """

    seen: Tensor
    starts: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def logits(self, numbers: Tensor) -> Tensor:
        """Logits at the labelled tokens of the examples of these numbers, one after another: (tokens, vocabulary)."""
        rows = torch.cat([torch.arange(int(self.starts[n]), int(self.starts[n + 1])) for n in numbers.tolist()])
        seen = self.seen[rows.to(self.seen.device)].to(numbers.device)
        return seen if self.weight is None else F.linear(seen.to(self.weight.dtype), self.weight, self.bias).float()


@dataclass(frozen=True)
class Student:
    """The model under way, and what the original says; make it with `prepare`, before the first step.

    Attributes:
        run: What it belongs to.
        task: What it is for.
        model: A copy of the original, to be trained.
        forget: The forget set as tokens, numbered from 0.
        problem: What was asked for.
        adapter: The adapter on the model, if only that is trained.
        batch_size: Most examples in a forward pass.
    """

    run: Run
    task: CausalLM
    model: nn.Module
    forget: Rows
    problem: Problem
    adapter: Adapted | None
    batch_size: int

    @classmethod
    def prepare(cls, problem: Problem, run: Run, lora: LoraSettings | None, batch_size: int) -> "Student":
        """Copy the model, with an adapter if there is to be one."""
        task = cast(CausalLM, problem.task)
        copy = run.copy(problem.model)
        seed_globals(run.seed, "adapter")
        adapter = None if lora is None else adapted(copy, lora)
        model = copy if adapter is None else adapter.model.to(run.device)
        forget = numbered(task, cast(MapDataset, problem.forget))
        return cls(run, task, model, forget, problem, adapter, batch_size)

    def finished(self) -> nn.Module:
        """A plain model in evaluation mode, with the adapter merged into its weights and nothing frozen."""
        return (self.model if self.adapter is None else self.adapter.merged()).requires_grad_(True).eval()

    def drawn(self, most: int) -> Rows:
        """Retained examples as tokens, at most so many, drawn at random and numbered from 0."""
        retain = cast(MapDataset, self.problem.retain)
        if most < len(retain):
            order = torch.randperm(len(retain), generator=self.run.generator("retained examples"))
            retain = subset(retain, order[:most])
        return numbered(self.task, retain)

    def log_probabilities(self, rows: Rows) -> Tensor:
        """Log-probability of the labelled tokens of each example under the original: (examples,)."""
        return torch.cat(self.over(rows, partial(log_probability, self.task))).to(self.run.device)

    def reference(self, rows: Rows) -> Reference:
        """What the original predicts at the labelled tokens of these examples."""
        head = self.task.head_of(self.model)
        weight, bias = head.weight.detach(), cast("Tensor | None", head.bias)

        def features_of(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor, bool]:
            said = labelled(self.task, model, batch)
            rebuilt = F.linear(said.seen.to(weight.dtype), weight, bias).float()
            agree = bool((rebuilt - said.logits).abs().max() <= _AGREE * (1 + said.logits.abs().max()))
            return said.counts, said.seen, agree

        def logits_of(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor, bool]:
            said = labelled(self.task, model, batch)
            return said.counts, said.logits, False

        pieces = self.over(rows, features_of)
        plain = all(agree for *_, agree in pieces)  # a cap on logits shows only in batches that reach it
        if not plain:
            pieces = self.over(rows, logits_of)
        starts = F.pad(torch.cat([piece[0] for piece in pieces]).cumsum(0), (1, 0))
        kept = torch.cat([piece[1] for piece in pieces]).to(self.run.device)
        if not plain:
            return Reference(kept, starts, None, None)
        # An adapter leaves the head as it was; trained weights do not, so that of the original is kept.
        trained = head.weight.requires_grad
        return Reference(
            kept, starts, weight.clone() if trained else weight, None if bias is None else bias.detach().clone()
        )

    def over(self, rows: Rows, measure: Callable[[nn.Module, TextBatch], T]) -> list[T]:
        """What `measure` finds with the model as it is, batch by batch."""
        return over_batches(self.run, self.model, cast(MapDataset, rows), measure, self.batch_size)

    def divergence_from_original(self, rows: Rows) -> Objective:
        """KL(original || model) in nats, averaged over the labelled tokens of each of these examples."""
        reference = self.reference(rows)

        def objective(model: nn.Module, batch: TextBatch) -> Tensor:
            said = labelled(self.task, model, batch)
            return said.mean(divergence(reference.logits(batch["numbers"]), said.logits))

        return objective


def numbered(task: CausalLM, dataset: MapDataset) -> Rows:
    """Examples as tokens, each with its number, which its batch carries."""
    return [row | {NUMBER: number} for number, row in enumerate(task.tokenized(dataset).dataset)]


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || model) in nats, from logits of both: (tokens, vocabulary) to (tokens,)."""
    log_p, log_q = reference.log_softmax(1), logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def chosen(rows: Sequence[dict[str, Any]], numbers: Tensor) -> list[dict[str, Any]]:
    """The rows of these numbers."""
    return [rows[number] for number in numbers.tolist()]
