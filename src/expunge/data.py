"""Reading map-style datasets: tensors, Hugging Face datasets, and anything with a length and an index.

An example is a tuple (`(image, label)`) or a mapping (`{"image": ..., "label": ...}`). Where the data already lie in
tensors, whole batches are sliced out of them instead of being put together item by item.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import datasets as hf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from expunge.errors import DataError, ForgetSetError
from expunge.storage import update_digest

Example = Any
FieldKey = str | int

INPUT_NAMES = ("pixel_values", "image", "images", "img", "inputs", "input", "features", "x")
LABEL_NAMES = ("labels", "label", "targets", "target", "y")

_DIGEST_SAMPLE = 1024


@runtime_checkable
class MapDataset(Protocol):
    """Anything with a length and an integer index: torch and Hugging Face datasets, lists."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: Any, /) -> Example:
        """One example."""
        ...


@runtime_checkable
class _FetchesMany(Protocol):
    def __getitems__(self, indices: list[int], /) -> list[Example]: ...


@runtime_checkable
class HasColumns(Protocol):
    """A dataset that can give one field of every example without reading the others, such as labels of images."""

    def column(self, name: FieldKey) -> NDArray[Any]:
        """The field of every example: (examples,)."""
        ...


@dataclass(frozen=True)
class View:
    """A dataset with its nested subsets resolved to one list of positions."""

    base: MapDataset
    indices: Tensor  # (length,) int64 positions in `base`

    @classmethod
    def of(cls, dataset: MapDataset) -> "View":
        """Resolve any chain of `torch.utils.data.Subset`."""
        if isinstance(dataset, Subset):
            subset = cast("Subset[Any]", dataset)
            inner = cls.of(cast(MapDataset, subset.dataset))
            return cls(inner.base, inner.indices[torch.as_tensor(subset.indices, dtype=torch.long)])
        return cls(dataset, torch.arange(len(dataset)))

    def columns(self, positions: Tensor) -> Example | None:
        """Many examples as one example whose fields carry a leading batch axis, or None where they must be stacked."""
        chosen = self.indices[positions]
        if isinstance(self.base, TensorDataset):
            return tuple(tensor[chosen] for tensor in self.base.tensors)
        if isinstance(self.base, hf.Dataset) and self.base.format["type"] in {"torch", "numpy"}:
            fields = cast(dict[str, Any], self.base[chosen.tolist()])
            if all(_is_numeric(value) for value in fields.values()):
                return {name: torch.as_tensor(value) for name, value in fields.items()}
        return None

    def examples(self, positions: Tensor) -> list[Example]:
        """The examples at these positions, one by one."""
        chosen = cast(list[int], self.indices[positions].tolist())
        if isinstance(self.base, _FetchesMany):
            return list(self.base.__getitems__(chosen))
        return [self.base[index] for index in chosen]


def subset(dataset: MapDataset, positions: Tensor) -> MapDataset:
    """The examples at these positions, in that order; a position may occur more than once."""
    return cast(MapDataset, Subset(cast("Dataset[Any]", dataset), cast("list[int]", positions.tolist())))


def union(first: MapDataset, second: MapDataset) -> MapDataset:
    """The examples of both: in the order of the dataset that both are parts of, else one after the other."""
    one, two = View.of(first), View.of(second)
    if one.base is two.base:
        return subset(one.base, torch.cat([one.indices, two.indices]).sort().values)
    return cast(MapDataset, ConcatDataset([cast("Dataset[Any]", first), cast("Dataset[Any]", second)]))


def field_key(example: Example, names: Sequence[str], position: int, purpose: str) -> FieldKey:
    """Which field of an example holds its input or its label.

    Args:
        example: A tuple or a mapping.
        names: Names to look for in a mapping, in order of preference.
        position: Where the field stands in a tuple.
        purpose: What is looked for, in words, for the error message.

    Raises:
        DataError: A mapping has none of the names, or a tuple is too short.
    """
    if isinstance(example, Mapping):
        for name in names:
            if name in example:
                return name
        known = ", ".join(sorted(str(name) for name in cast(Mapping[Any, Any], example)))
        raise DataError(f"no {purpose} found: the examples have the fields {known}; name the right one explicitly")
    if isinstance(example, tuple | list):
        if position < len(cast(Sequence[Any], example)):
            return position
        raise DataError(
            f"an example has {len(cast(Sequence[Any], example))} fields, too few to hold a {purpose} at {position}"
        )
    raise DataError(f"an example is a {type(example).__name__}; a tuple or a mapping is needed, such as (image, label)")


def column(dataset: MapDataset, key: FieldKey) -> NDArray[Any]:
    """One field of every example; where the dataset is columnar the other fields are not read.

    Returns:
        An array with one entry an example; of type `object` where the values are not scalars.
    """
    view = View.of(dataset)
    if isinstance(view.base, TensorDataset) and isinstance(key, int) and key < len(view.base.tensors):
        return view.base.tensors[key][view.indices].numpy()
    if isinstance(view.base, hf.Dataset) and isinstance(key, str):
        _require_column(view.base, key)
        plain = cast(dict[str, Any], view.base.with_format(None).select_columns([key])[:])
        values = np.asarray(plain[key])
        return values[view.indices.numpy()]
    if isinstance(view.base, HasColumns):
        return view.base.column(key)[view.indices.numpy()]
    return np.asarray([_scalar(_field(view.base[index], key)) for index in view.indices.tolist()])


def has_columns(dataset: MapDataset) -> bool:
    """Whether `column` gets one field of every example without reading the others, or all are in memory."""
    return isinstance(View.of(dataset).base, TensorDataset | hf.Dataset | HasColumns | list | tuple)


def digest_dataset(dataset: MapDataset, key: bytes) -> str:
    """A keyed SHA-256 of a dataset; without the key nobody can test a guess about what it holds.

    Every example counts where the data lie in tensors or are at most 1,024; of larger datasets that must be read
    item by item, the length and 1,024 evenly spaced examples count.
    """
    state = hashlib.sha256(key)
    view = View.of(dataset)
    update_digest(state, str(len(view.indices)).encode())
    for chunk in _digest_chunks(view):
        columns = view.columns(chunk)
        for example in [columns] if columns is not None else view.examples(chunk):
            for value in _leaves(example):
                update_digest(state, value)
    return state.hexdigest()


def shared_positions(first: MapDataset, second: MapDataset) -> int:
    """How many examples two subsets of the same dataset have in common; 0 where they do not share a base."""
    one, other = View.of(first), View.of(second)
    if one.base is not other.base:
        return 0
    return int(torch.isin(one.indices, other.indices).sum())


def positions(indices: Sequence[int] | NDArray[Any] | Tensor, length: int) -> Tensor:
    """Validated, sorted, unique positions from indices or from a boolean mask.

    Raises:
        ForgetSetError: An index is out of range, a mask has the wrong length, or labels were given.
    """
    try:
        values = np.asarray(indices).copy()  # torch warns of a mask of pandas, which may not be written to
    except ValueError as error:
        raise ForgetSetError("indices must be one list of positions, not lists of several lengths") from error
    if values.dtype == object and values.ndim == 1:  # as pandas keeps columns that might have gaps
        values = np.array(values.tolist())
    if values.dtype.kind in "OSUmM" or values.ndim != 1:
        raise ForgetSetError(
            f"indices must be one list of positions or of True and False, not {_form(indices, values)}; give "
            "positions, not labels: for rows of a table by label use df.index.get_indexer(labels), for a set list(...)"
        )
    if len(values) == 0:
        return torch.empty(0, dtype=torch.long)
    if values.dtype.kind == "b":
        if len(values) != length:
            raise ForgetSetError(f"the mask has {len(values)} entries but the dataset has {length} examples")
        return torch.from_numpy(values).nonzero().flatten()
    if values.dtype.kind not in "iu":
        raise ForgetSetError(f"indices must be whole numbers, not {values.dtype}")
    outside = values[(values < 0) | (values >= length)]
    if len(outside):
        raise ForgetSetError(
            f"{len(outside)} forget indices lie outside the dataset (the first is {int(outside[0])}; "
            f"valid are 0 to {length - 1}); check that they refer to this dataset"
        )
    return torch.from_numpy(values.astype(np.int64)).unique()


def _form(given: object, values: NDArray[Any]) -> str:
    """What was given, in words that quote none of it."""
    if values.ndim != 1:
        return f"a {type(given).__name__} of {values.ndim} axes"
    return f"a {type(given).__name__} of {'text' if values.dtype.kind in 'SU' else f'type {values.dtype}'}"


def _digest_chunks(view: View) -> Iterator[Tensor]:
    length = len(view.indices)
    in_memory = isinstance(view.base, TensorDataset)
    if in_memory or length <= _DIGEST_SAMPLE:
        chosen = torch.arange(length)
    else:
        chosen = torch.linspace(0, length - 1, _DIGEST_SAMPLE).long()
    yield from chosen.split(_DIGEST_SAMPLE)


def _leaves(example: Example) -> Iterator[Tensor | bytes]:
    if isinstance(example, Mapping):
        fields = cast(Mapping[str, Any], example)
        for name in sorted(fields):
            yield name.encode()
            yield from _leaves(fields[name])
    elif isinstance(example, tuple | list):
        for value in cast(Sequence[Any], example):
            yield from _leaves(value)
    elif isinstance(example, bytes | Tensor):
        yield example
    elif type(example) is int:  # as JSON has it, without the time that JSON takes: texts are long lists of these
        yield str(example).encode()
    elif isinstance(example, str | int | float | bool | None):
        yield json.dumps(example).encode()
    else:
        values = np.asarray(example)
        # The bytes of an array of objects (dates, decimals) would be addresses in memory.
        content = repr(example).encode() if values.dtype == object else values.tobytes()
        yield content + str(values.dtype).encode() + str(values.shape).encode()


def _field(example: Example, key: FieldKey) -> Any:
    try:
        return example[key]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"the examples have no field {key!r}; name one that they have") from error


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value


def _require_column(dataset: hf.Dataset, key: str) -> None:
    if key not in dataset.column_names:
        raise DataError(f"the dataset has no column {key!r}; it has {', '.join(dataset.column_names)}")
