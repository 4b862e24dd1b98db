"""SalUn: random labels for the weights that the forget set speaks to most, and nothing for the others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.methods._labels import given_labels, wrong_labels
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_between, require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Term, mean_by_batch


@dataclass(frozen=True)
class SalUn(Method):
    """Teach wrong labels to those weights alone whose gradient on the forget set is largest.

    Every epoch is a pass over the forget set, each example with one wrong label, and a pass over the retain set. All
    other weights keep their bits: in the code until 2026 weight decay and momentum moved them, with which the published
    results were had. Statistics of BatchNorm are no weights and follow the data. It works for whole classes, parts of
    them and single examples.

    Args:
        share: Of the weights that may change. Default .5 (code).
        learning_rate: .013 (readme).
        epochs: Passes over both sets. Default 10 (readme).
        batch_size: 256 (code).
        weight_decay: 5e-4 (code), with SGD and momentum .9.
        mixed: One pass over both sets shuffled together, as the code has for CIFAR-100 and Tiny ImageNet.
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Fan et al. 2024 (arXiv 2310.12508), section 4"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    share: float = 0.5
    learning_rate: float = 0.013
    epochs: int = 10
    batch_size: int = 256
    weight_decay: float = 5e-4
    mixed: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_between(self, 0, 1, "share")
        require_positive(self, "learning_rate")
        require_whole(self, "epochs", "batch_size")
        require_at_least(self, 0, "weight_decay")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Find the salient weights and train those of a copy."""
        task = cast(Classification, problem.task)
        forget, retain = cast(MapDataset, problem.forget), cast(MapDataset, problem.retain)
        gradient = mean_by_batch(run, "saliency", problem.model, forget, task.losses)
        wrong = wrong_labels(task.labels_of(forget), task.classes, run.generator("wrong labels"))
        labels, objective = task.labels_of(retain), given_labels(task)
        parts = [(forget, wrong), (retain, labels)]
        if self.mixed:
            parts = [((forget, retain), torch.cat([wrong, labels]))]
        terms = [Term(data, objective, batch_size=self.batch_size, reference=given) for data, given in parts]
        model = run.copy(problem.model)
        run.train(
            "relabel",
            model,
            terms,
            Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9, weight_decay=self.weight_decay),
            passes=tuple(range(len(terms))) * self.epochs,
            gradient_scale=largest(gradient, self.share),
        )
        return model.eval()


def largest(values: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """1 where a weight is among the share with the largest absolute values of all, else 0; in the shapes given."""
    sizes = torch.cat([each.detach().abs().flatten() for each in values.values()])
    chosen = torch.zeros_like(sizes)
    chosen[sizes.topk(math.ceil(share * len(sizes))).indices] = 1
    pieces = chosen.split([each.numel() for each in values.values()])
    return {name: piece.reshape(each.shape) for (name, each), piece in zip(values.items(), pieces, strict=True)}
