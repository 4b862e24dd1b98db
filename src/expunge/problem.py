"""The request: which data a model must forget, and what is known besides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import (
    LABEL_NAMES,
    Example,
    FieldKey,
    MapDataset,
    column,
    field_key,
    has_columns,
    positions,
    shared_positions,
    subset,
)
from expunge.errors import DataError, ForgetSetError, NonFiniteModelError, SettingError
from expunge.tasks import Task


class Recipe(Protocol):
    """How such a model is trained; oracles and relearning use it.

    It must use nothing but the dataset it is given and be a function of the seed.
    """

    def __call__(self, dataset: MapDataset, seed: int) -> nn.Module:
        """Train a model on `dataset` from a fresh initialisation drawn with `seed`."""
        ...


class DeletionState(Protocol):
    """What training recorded so that a later deletion is exact, certified or cheap; see `expunge.record`.

    A state is never changed in place: a deletion makes a new one, whose sums are without the deleted rows. It is
    derived from personal data, also after a deletion: a state of curvature that was not rebased returns the row of a
    single deletion exactly, and one that was does so beside all rows that are left. Keep it like the data.
    """

    kind: ClassVar[str]

    def digest(self) -> str:
        """SHA-256 over everything the state holds: equal exactly when every bit is equal."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything to be saved that is a tensor, by name."""
        ...

    def notes(self) -> dict[str, Any]:
        """Everything else to be saved, as JSON can hold it."""
        ...


@dataclass(frozen=True)
class Problem:
    """A trained model, what it is for, and the data to forget and to keep.

    Args:
        model: The original, as trained on everything. It is never modified.
        task: What the model is for.
        forget: The forget set. It may be absent where only `classes` are known and the method reads no example.
        retain: The rest of the training data, or the part of it that is still at hand.
        holdout: Data of the same kind that was never trained on.
        classes: The classes that `forget` consists of, where whole classes are to be forgotten. Leave it out where
            only some examples of a class are.
        recipe: How such a model is trained, for retraining and for oracles.
        surrogate: Data that stand in for a training set that can no longer be read; none of it was trained on.
        state: What `expunge.record` kept of training, for deletion without the training set.
        near_duplicates: How many of the forget set joined it because they say nearly the same as what was asked for,
            where such were looked for; for the record.

    Raises:
        ForgetSetError: Nothing is to be forgotten, nothing would remain, forget and retain or surrogate share
            examples, or labels that can be read without the inputs contradict `classes`.
        DataError: The surrogate is empty.
        NonFiniteModelError: The model holds NaN or infinity.
    """

    model: nn.Module
    task: Task
    forget: MapDataset | None = None
    retain: MapDataset | None = None
    holdout: MapDataset | None = None
    classes: tuple[int, ...] = ()
    recipe: Recipe | None = None
    surrogate: MapDataset | None = None
    state: DeletionState | None = None
    near_duplicates: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without reading an input."""
        if self.forget is None and not self.classes:
            raise ForgetSetError("nothing is to be forgotten: pass a `forget` dataset, `classes`, or both")
        if self.forget is not None and len(self.forget) == 0:
            raise ForgetSetError("the forget set is empty; check the indices, the column value or the class asked for")
        if self.near_duplicates is not None:
            self._check_near_duplicates(self.near_duplicates)
        if self.retain is not None and len(self.retain) == 0:
            raise ForgetSetError("the retain set is empty: forgetting everything means discarding the model")
        if self.surrogate is not None and len(self.surrogate) == 0:
            raise DataError("the surrogate is empty; pass data of the same kind, or leave it out")
        for name, dataset in (("retain set", self.retain), ("surrogate", self.surrogate)):
            shared = shared_positions(self.forget, dataset) if self.forget is not None and dataset is not None else 0
            if shared:
                raise ForgetSetError(
                    f"{shared} examples are in both the forget set and the {name}; use `expunge.split` to part them"
                )
        require_finite(self.model)
        if self.classes:
            for name, dataset in (("forget", self.forget), ("retain", self.retain)):
                if dataset is not None and has_columns(dataset):
                    self._compare_classes(name, self.task.labels_of(dataset))

    def check_labels(self) -> None:
        """Read the label of every example of every set; inputs are read only where labels cannot be had without.

        Of text, whose examples differ in length, every example is held against what the model can read.

        Raises:
            ContextError: Examples of text are too long, and how many of each set.
            EmptyAnswerError: Examples of text have nothing to measure, and how many.
            LabelError: A label is outside the classes of the task.
            ForgetSetError: The labels contradict `classes`.
        """
        self.task.require_readable(self.model, self.datasets())
        for name, dataset in self.datasets().items():
            self._compare_classes(name, self.task.labels_of(dataset))

    def datasets(self) -> dict[str, MapDataset]:
        """The datasets that are there, by name."""
        named = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout, "surrogate": self.surrogate}
        return {name: dataset for name, dataset in named.items() if dataset is not None}

    def _check_near_duplicates(self, joined: int) -> None:
        most = 0 if self.forget is None else len(self.forget) - 1
        if not 0 <= joined <= most:
            raise ForgetSetError(
                f"near_duplicates is {joined}; of this forget set 0 to {most} can have joined what was asked for"
            )

    def _compare_classes(self, name: str, labels: Tensor | None) -> None:
        if labels is None or not self.classes:
            return
        named = torch.isin(labels, torch.tensor(self.classes))
        if name == "forget" and not bool(named.all()):
            raise ForgetSetError(
                f"{int((~named).sum())} of {len(labels)} forget examples belong to a class other than those named "
                f"({_listed(self.classes)}); split with `classes=`, or leave `classes` out to forget single examples"
            )
        if name == "retain" and bool(named.any()):
            raise ForgetSetError(
                f"{int(named.sum())} retained examples belong to a class to be forgotten ({_listed(self.classes)}); "
                "split with `classes=`, or leave `classes` out to forget single examples"
            )


@dataclass(frozen=True)
class Split:
    """A dataset parted in two; see `split`."""

    forget: MapDataset
    retain: MapDataset
    indices: Tensor  # (forget,) int64, sorted positions of the forget set in the dataset
    classes: tuple[int, ...] = ()


def split(
    dataset: MapDataset,
    *,
    indices: Sequence[int] | NDArray[Any] | Tensor | None = None,
    where: Callable[[Example], bool] | None = None,
    column_is: tuple[FieldKey, Sequence[Any]] | None = None,
    classes: Sequence[int] | None = None,
    label: FieldKey | None = None,
) -> Split:
    """Part a training set into what is to be forgotten and what is to be kept.

    Give exactly one of the selectors.

    Args:
        dataset: The data that the model was trained on.
        indices: Positions of the examples to forget, or a boolean mask over the dataset.
        where: A predicate that is true of the examples to forget.
        column_is: A field and the values that mark the examples to forget, as in `("patient_id", ["p-17"])`: all
            rows of a person at once.
        classes: Whole classes to forget.
        label: Field that holds the label, for `classes`; found by its usual names by default.

    Raises:
        ForgetSetError: No example is selected, or every one; an index is out of range; a value or class is not found.

    Example:
        >>> data = [("a", 0), ("b", 1), ("c", 0)]
        >>> parts = split(data, classes=[1])
        >>> len(parts.forget), len(parts.retain), parts.classes
        (1, 2, (1,))
    """
    given = [name for name, value in
             [("indices", indices), ("where", where), ("column_is", column_is), ("classes", classes)]
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise SettingError(f"give exactly one of indices, where, column_is and classes, not {given or 'none'}")
    length = len(dataset)
    if length == 0:
        raise ForgetSetError("the dataset is empty")
    forgotten: tuple[int, ...] = ()
    if indices is not None:
        chosen = positions(indices, length)
    elif where is not None:
        chosen = torch.tensor([index for index in range(length) if where(dataset[index])], dtype=torch.long)
    elif column_is is not None:
        key, wanted = column_is
        chosen = _positions_of(column(dataset, key), wanted, f"of field {key!r}")
    else:
        forgotten = tuple(sorted({int(label) for label in cast(Sequence[int], classes)}))
        key = label if label is not None else field_key(dataset[0], LABEL_NAMES, 1, "label")
        chosen = _positions_of(column(dataset, key), forgotten, "among the classes")
    if len(chosen) == 0:
        raise ForgetSetError("the forget set is empty: no example was selected; check what identifies the data")
    if len(chosen) == length:
        raise ForgetSetError("the forget set is the whole dataset: forgetting everything means discarding the model")
    kept = torch.ones(length, dtype=torch.bool)
    kept[chosen] = False
    return Split(
        subset(dataset, chosen),
        subset(dataset, kept.nonzero().flatten()),
        chosen,
        forgotten,
    )


def forgotten_kinds(task: Task, forget: MapDataset | None, retain: MapDataset | None) -> Tensor:
    """Labels that occur in the forget set and not in the retain set, sorted: (kinds,) int64; none without labels.

    Where a person or a list is to be forgotten, these are the kinds of which nothing is kept.
    """
    nothing = torch.empty(0, dtype=torch.int64)
    forgotten = task.labels_of(forget) if forget is not None else None
    if forgotten is None or retain is None:
        return nothing
    kept = task.labels_of(retain)
    return nothing if kept is None else torch.from_numpy(np.setdiff1d(forgotten.numpy(), kept.numpy()))


def require_finite(model: nn.Module) -> None:
    """Raise NonFiniteModelError, naming the tensor, where a model holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteModelError(f"{name} of the model holds NaN or infinity; load a sound checkpoint")


def _listed(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes))


def _positions_of(values: NDArray[Any], wanted: Sequence[Any], where: str) -> Tensor:
    missing = [index for index, value in enumerate(wanted) if not np.any(values == value)]
    if missing:
        raise ForgetSetError(
            f"{len(missing)} of the {len(wanted)} values asked for do not occur {where} "
            f"(by position in the request: {missing[:5]}); check their spelling and type"
        )
    return torch.from_numpy(np.flatnonzero(np.isin(values, np.asarray(wanted))))
