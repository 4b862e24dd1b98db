"""Pictures in a column of a Hugging Face dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets as hf
import numpy as np
from PIL import Image

from expunge.data import INPUT_NAMES, LABEL_NAMES, column
from expunge.errors import DataError
from expunge.hugging_face import load_split
from expunge.pictures.dataset import Pictures, numbered
from expunge.pictures.fitting import Fitting


@dataclass(frozen=True)
class _Rows:
    images: Any  # a dataset with one column, whose values the library decodes
    key: str

    def __len__(self) -> int:
        return len(self.images)

    def name(self, position: int) -> str:
        return f"row {position}"

    def open(self, position: int) -> Image.Image:
        found = self.images[position][self.key]
        if not isinstance(found, Image.Image):
            raise ValueError("there is no picture")
        return found


def read_hugging_face(
    dataset: hf.Dataset | str | Path,
    fitting: Fitting,
    *,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    names: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    check: bool = True,
) -> Pictures:
    """Pictures in a column of a Hugging Face dataset.

    Args:
        dataset: The dataset itself, or the name or path of one; see `expunge.hugging_face.load_split`.
        fitting: How the pictures become tensors.
        split: Which part, where a name or path is given.
        image: The column of pictures; found by its usual names by default.
        label: The column of classes; likewise.
        names: Of the classes, for a column of text or numbers; see `numbered`.
        columns: Further columns by which examples may be found, such as `person`.
        check: Decode each picture once first, so that a damaged one is known before any training.

    Raises:
        SourceError: The dataset cannot be loaded.
        DataError: A column is missing, or holds no pictures.
        LabelError: A label is not among the names.
        UnreadablePicturesError: Pictures cannot be decoded; it lists them.
        ShapeError: They are of several sizes, and the fitting leaves them so.
    """
    table = dataset if isinstance(dataset, hf.Dataset) else load_split(dataset, split)
    pixels = _column(table, image, INPUT_NAMES, "pictures")
    if not isinstance(table.features[pixels], hf.Image):
        kind = type(table.features[pixels]).__name__
        raise DataError(f"the column {pixels!r} holds {kind}, not pictures; cast it to datasets.Image()")
    classes = _column(table, label, LABEL_NAMES, "classes")
    feature: Any = table.features[classes]
    if isinstance(feature, hf.ClassLabel):
        labels, known = np.asarray(column(table, classes)), tuple(feature.names)
        if names is not None and tuple(names) != known:
            labels, known = numbered(np.asarray(known)[labels], names)
    else:
        labels, known = numbered(column(table, classes), names)
    images = cast(Any, table).with_format(None).select_columns([pixels])
    found = Pictures(
        _Rows(images, pixels), fitting, labels, known, {name: np.asarray(column(table, name)) for name in columns}
    )
    if check:
        found.check()
    return found


def _column(table: hf.Dataset, name: str | None, usual: Sequence[str], purpose: str) -> str:
    present = table.column_names
    found = name if name is not None else next((each for each in usual if each in present), None)
    if found not in present:
        raise DataError(f"no column of {purpose} found among {', '.join(present)}; name the right one")
    return str(found)
