"""What a model is for, described once, so that nothing above ever looks inside a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from expunge.data import Example, MapDataset

Batch = Any
"""Whatever a task puts together; a tree of dicts, lists and tensors whose leading axis is the batch."""


class Task(ABC):
    """A modality: how examples become batches, what a model says about them, and how good that is.

    Every tensor that is returned has one row an example.
    """

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Put single examples together into a batch; raise a `DataError` for one that cannot be used."""

    @abstractmethod
    def stack(self, columns: Example) -> Batch:
        """Make a batch of one example whose every field already has a leading batch axis."""

    @abstractmethod
    def labels_of(self, dataset: MapDataset) -> Tensor | None:
        """Class of every example, (examples,), or None where examples have none; raise a `LabelError` for a bad one."""

    def require_readable(self, model: nn.Module, datasets: Mapping[str, MapDataset]) -> None:
        """Raise a `DataError` where a model cannot read an example of these sets, before anything is computed.

        A task whose examples are all of one size leaves this as it is.
        """
        del model, datasets

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model says, in the form that may be distilled or matched: (batch, ...), such as logits."""

    def fixed(self, model: nn.Module) -> Sequence[str]:
        """Names of parameters that are computed, so that no phase trains or decays them; by default none.

        Names are those of `named_parameters`; one that the model does not have counts for nothing.
        """
        del model
        return ()

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss of each example in nats: (batch,)."""

    @abstractmethod
    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Distance between two models' outputs for the same examples: (batch,)."""

    @abstractmethod
    def signal(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a membership attack looks at, larger for members: (batch,)."""

    @abstractmethod
    def quality(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Measures of quality by name, the headline first; each (batch,) in [0, 1], larger is better."""

    @abstractmethod
    def groups(self, batch: Batch) -> Sequence[str]:
        """Name of the group that each example belongs to; quality is reported by group."""

    @abstractmethod
    def answers(self, outputs: Tensor) -> Mapping[str, Tensor]:
        """How much of each kind of answer the outputs give, such as class probabilities: (batch,) a kind."""

    @abstractmethod
    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the last layer sees of each example: (batch, features)."""

    @abstractmethod
    def refit_head(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Refit the last layer of `model` in place on these batches, holding what it sees fixed."""
