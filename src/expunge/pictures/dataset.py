"""A dataset of pictures that are decoded when they are asked for."""

import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import TensorDataset

from expunge.data import FieldKey
from expunge.errors import DataError, LabelError, ShapeError, UnreadablePicturesError
from expunge.pictures.fitting import Fitting

LABEL, CLASS, NAME = "label", "class", "file"

_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, struct.error, zlib.error)
_MOST_THREADS = 8


class Stored(Protocol):
    """Where pictures lie."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def name(self, position: int) -> str:
        """What a user calls one of them, such as a path."""
        ...

    def open(self, position: int) -> Image.Image:
        """One of them; an OSError or ValueError where it cannot be read."""
        ...


class Pictures:
    """A map-style dataset of pictures: `{"image": (channels, height, width) in [0, 1], "label": class, ...}`.

    A picture is decoded each time it is asked for and not kept, so a dataset takes no more memory than its names and
    labels, however large the files. Columns other than the image are at hand without decoding. By them `expunge.split`
    finds what is to be forgotten: `classes=[3]`, `column_is=("class", ["cat"])`, `column_is=("person", ["s1"])`,
    `column_is=("file", ["cat/7.jpg"])`.

    Args:
        stored: Where the pictures lie.
        fitting: How they become tensors.
        labels: (pictures,) number of each one's class.
        names: Names of the classes, in the order of their numbers.
        columns: What else is known of each picture, (pictures,) each, such as `person`.

    Raises:
        DataError: There is no picture, a column has another length, or it is called like one of our own.
        LabelError: A label is not the number of a class.
    """

    def __init__(
        self,
        stored: Stored,
        fitting: Fitting,
        labels: Sequence[int] | NDArray[np.int64],
        names: Sequence[str],
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.stored, self.fitting, self.names = stored, fitting, tuple(names)
        self.labels: NDArray[np.int64] = np.asarray(labels, dtype=np.int64)
        self.columns = dict(columns or {})
        if len(stored) == 0:
            raise DataError("there are no pictures; check the folder, the split or the array that was named")
        for name, values in {LABEL: self.labels, **self.columns}.items():
            if np.shape(values) != (len(stored),):
                raise DataError(f"the column {name!r} has shape {np.shape(values)} for {len(stored)} pictures")
        taken = set(self.columns) & {"image", LABEL, CLASS, NAME}
        if taken:
            raise DataError(f"a column cannot be called {', '.join(sorted(taken))}, for each picture has one already")
        outside = int(((self.labels < 0) | (self.labels >= len(self.names))).sum())
        if outside:
            raise LabelError(f"{outside} of {len(stored)} labels are not among the {len(self.names)} classes named")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Decode one picture.

        Raises:
            UnreadablePicturesError: It cannot be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} pictures, none with the position {index}")
        position = index % len(self)
        try:
            image = self._image(position)
        except _UNREADABLE as error:
            raise _refusal([(self.stored.name(position), _reason(error))], len(self)) from error
        return {"image": image, **self._others(position)}

    def column(self, name: FieldKey) -> NDArray[Any]:
        """One value a picture, without decoding any: `label`, `class`, `file`, or a column of one's own.

        Raises:
            DataError: There is no such column.
        """
        if name == LABEL:
            return self.labels
        if name == CLASS:
            return np.asarray(self.names)[self.labels]
        if name == NAME:
            return np.asarray([self.stored.name(position) for position in range(len(self))])
        if name not in self.columns:
            known = ", ".join([LABEL, CLASS, NAME, *self.columns])
            raise DataError(f"the pictures have no column {name!r} that is known without decoding; they have {known}")
        return self.columns[str(name)]

    def in_memory(self) -> TensorDataset:
        """All pictures as one tensor of images, (pictures, channels, height, width) float32, and one of labels.

        Batches of it are slices, so that training on small pictures does not wait for them; it takes four bytes a
        channel of a pixel. The columns and names stay here.

        Raises:
            UnreadablePicturesError: A picture cannot be read.
            ShapeError: They are of several sizes, because the fitting leaves them as they are.
        """
        self.check()
        images = torch.empty(len(self), *self[0]["image"].shape)
        for position in range(len(self)):
            images[position] = self._image(position)
        return TensorDataset(images, torch.from_numpy(self.labels))

    def check(self, *, one_size: bool = True) -> None:
        """Read every picture once, several at a time, decoded no finer than it takes to find damage, and keep none.

        Args:
            one_size: Whether all must be of one size.

        Raises:
            UnreadablePicturesError: Some cannot be read; it lists them.
            ShapeError: They are of several sizes, because the fitting leaves them as they are.
        """
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(self._tried, range(len(self))))
        unreadable = [
            (self.stored.name(position), result) for position, result in enumerate(found) if isinstance(result, str)
        ]
        if unreadable:
            raise _refusal(unreadable, len(self))
        sizes = sorted({cast("tuple[int, int]", result) for result in found})
        if one_size and len(sizes) > 1:
            raise ShapeError(
                f"the pictures are of {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}; give a size, as "
                "in Fitting(size=64)"
            )

    def _tried(self, position: int) -> tuple[int, int] | str:
        """Height and width of a picture, or why it cannot be read."""
        try:
            with self.stored.open(position) as picture:
                return self.fitting.examine(picture)
        except _UNREADABLE as error:
            return _reason(error)

    def _image(self, position: int) -> Tensor:
        with self.stored.open(position) as picture:
            return self.fitting.tensor(picture)

    def _others(self, position: int) -> dict[str, Any]:
        return {LABEL: int(self.labels[position])} | {
            name: values[position].item() for name, values in self.columns.items()
        }


def numbered(
    values: Sequence[Any] | NDArray[Any], names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as class numbers, and the classes' names.

    Args:
        values: (pictures,) whole numbers or text.
        names: Of all classes in the order of their numbers, such as those of the training data for a holdout; by
            default what occurs, sorted, but whole numbers from 0 on stay what they are.

    Raises:
        LabelError: A label is neither a whole number nor text, or is not among the names.
    """
    given = np.asarray(values)
    if given.dtype.kind not in "iuSU" or given.ndim != 1:
        raise LabelError(f"labels of shape {given.shape} and type {given.dtype}; give a whole number or a name each")
    if names is None and given.dtype.kind in "iu" and len(given) and given.min() == 0 and given.max() < len(given):
        names = [str(number) for number in range(int(given.max()) + 1)]
    known = tuple(str(name) for name in (np.unique(given).tolist() if names is None else names))
    places = {name: number for number, name in enumerate(known)}
    labels = np.array([places.get(str(value), -1) for value in given.tolist()], dtype=np.int64)
    unknown = int((labels < 0).sum())
    if unknown:
        raise LabelError(f"{unknown} of {len(labels)} labels are not among the {len(known)} classes named")
    return labels, known


def _reason(error: BaseException) -> str:
    """What is wrong with a file, without its path, in a line."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _refusal(found: list[tuple[str, str]], count: int) -> UnreadablePicturesError:
    return UnreadablePicturesError(dict(found), count)
