"""Random labels: teach the model a wrong answer for each forget example."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.methods._labels import wrong_labels
from expunge.methods.base import Maturity, Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_positive, require_whole
from expunge.tasks import Classification
from expunge.training import Algorithm, Optimizer, Run, Term


@dataclass(frozen=True)
class RandomLabel(Method):
    """Give every forget example a wrong label, drawn once, and train on those together with the retain set.

    Args:
        learning_rate: Of Adam. Default 1e-4 (Foster et al. 2023, code, their "amnesiac" baseline).
        epochs: Passes over both sets. Default 3 (ibid.).
        batch_size: 64 (Graves et al. 2021, code).
    """

    needs: ClassVar = frozenset({Need.FORGET, Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "Graves et al. 2021 (arXiv 2010.10981), section 4.1"
    maturity: ClassVar = Maturity.STABLE
    tasks: ClassVar = (Classification,)

    learning_rate: float = 1e-4
    epochs: float = 3
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "learning_rate", "epochs")
        require_whole(self, "batch_size")

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Relabel, mix and train a copy of the model."""
        task = cast(Classification, problem.task)
        forget, retain = cast(MapDataset, problem.forget), cast(MapDataset, problem.retain)
        wrong = wrong_labels(task.labels_of(forget), task.classes, run.generator("wrong labels"))
        model = run.copy(problem.model)
        run.train(
            "relabel",
            model,
            [Term((_Relabelled(task, forget, wrong), retain), task.losses, batch_size=self.batch_size)],
            Optimizer(self.learning_rate, Algorithm.ADAM),
            epochs=self.epochs,
        )
        return model.eval()


@dataclass(frozen=True)
class _Relabelled:
    task: Classification
    dataset: MapDataset
    labels: Tensor  # (examples,) int64

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.task.fields(self.task.collate([self.dataset[index]])["inputs"][0], self.labels[index])
