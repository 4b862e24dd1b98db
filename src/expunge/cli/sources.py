"""Data from where the job says they are: arrays, tables, image folders, Hugging Face datasets, the user's code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import datasets as hf
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from expunge.cli.job import Job
from expunge.cli.loading import existing, load_function, users_code
from expunge.cli.settings import nearest
from expunge.cli.source_sections import (
    CsvSource,
    HuggingFaceSource,
    ImagesSource,
    NpzSource,
    ParquetSource,
    PythonSource,
    SourceSection,
)
from expunge.cli.tables import TableFile, read_table
from expunge.cli.task_sections import ClassificationSection
from expunge.data import LABEL_NAMES, MapDataset, column
from expunge.errors import SourceError
from expunge.hugging_face import load_split
from expunge.pictures import Fitting, picture_folders, pictures_in

_library = cast(Any, hf)  # its functions for loading are only partly annotated


@dataclass(frozen=True)
class Source:
    """A dataset and what was found out while reading it.

    Attributes:
        dataset: The examples.
        column: A column as text, one value an example, by which examples may be chosen.
        names: The classes' names, where the labels were given as names.
        features: The columns that make up an input, where it comes from a table.
        fields: Whether examples are mappings, whose fields have names.
    """

    dataset: MapDataset
    column: Callable[[str | int], NDArray[np.str_]]
    names: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    fields: bool = False


def load_source(section: SourceSection, job: Job, key: str, like: Source | None = None) -> Source:
    """Load a data source.

    Args:
        section: Which.
        job: The job it belongs to.
        key: Where it stands in the job, for error messages.
        like: The training data, whose features and class numbers the holdout must share.

    Raises:
        SourceError: It cannot be loaded, or its examples cannot be used.
    """
    match section:
        case NpzSource():
            return _npz(section, job.path(section.npz), key, like)
        case CsvSource() | ParquetSource():
            return _table(section, job, key, like)
        case ImagesSource():
            return _images(section, job.path(section.images), key, like)
        case HuggingFaceSource():
            return _hugging_face(section, job, key, like)
        case PythonSource():
            return load_function_source(section, job, key)
        case _:
            raise SourceError(f"{key}: holds text, which a classifier does not read; give the task `kind: causal-lm`")


def load_function_source(section: PythonSource, job: Job, key: str) -> Source:
    """What a function of the user's returns.

    Raises:
        SourceError: The function failed, or returned no dataset.
    """
    dataset = load_function(section.python, job.base, f"{key}.python")()
    with users_code(section.python, f"{key}.python"):
        if not isinstance(dataset, MapDataset) or len(dataset) == 0:
            found = "an empty dataset" if isinstance(dataset, MapDataset) else f"a {type(dataset).__name__}"
            raise SourceError(
                f"{key}.python: {section.python} returned {found}; return a dataset with a length and an index"
            )
        fields = not isinstance(dataset[0], tuple | list | str)
    return Source(dataset, lambda name: _text(column(dataset, name)), fields=fields)


def numbered_labels(
    values: NDArray[Any], key: str, like: Source | None
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Labels as class numbers, and the classes' names where they were text: in sorted order, or the training data's.

    Raises:
        SourceError: A label is absent or no whole number, or training data and holdout disagree.
    """
    names: tuple[str, ...] | None = None
    if np.issubdtype(values.dtype, np.floating):
        wrong = int((~np.isfinite(values) | (values != np.round(values))).sum())
        if wrong:
            raise SourceError(f"{key}: {wrong} of {len(values)} labels are missing or not whole numbers; correct them")
    elif not (np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_):
        values = values.astype(str)
        names = like.names if like is not None and like.names else tuple(np.unique(values).tolist())
        unknown = int((~np.isin(values, names)).sum())
        if unknown:
            raise SourceError(f"{key}: {unknown} of {len(values)} labels are of classes that the training data lack")
        values = np.searchsorted(np.asarray(names), values)
    if like is not None and (like.names is None) != (names is None):
        raise SourceError(f"{key}: labels are text in one of data.train and data.holdout and numbers in the other")
    return values.astype(np.int64), names


def _npz(section: NpzSource, path: Path, key: str, like: Source | None) -> Source:
    arrays = _read_npz(existing(path, key), key)
    for option, name in (("inputs", section.inputs), ("labels", section.labels)):
        if name not in arrays:
            raise SourceError(f"{key}.{option}: {path} has no array {name!r}{nearest(name, arrays)}")
    inputs, given = arrays[section.inputs], arrays[section.labels]
    if given.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(given):
        raise SourceError(
            f"{key}: inputs of shape {inputs.shape} and labels of shape {given.shape} do not fit; labels are "
            "(examples,) and inputs (examples, ...)"
        )
    if not (np.issubdtype(inputs.dtype, np.number) or inputs.dtype == np.bool_):
        raise SourceError(f"{key}.inputs: the array {section.inputs!r} is {inputs.dtype}; numbers are needed")
    values = inputs.astype(np.float32) / np.float32(section.scale)
    bad = int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum())
    if bad:
        raise SourceError(f"{key}.inputs: {bad} of {len(values)} examples hold NaN or infinity; clean or drop them")
    if values.ndim == 3:
        values = values[:, None]
    elif section.channels_last:
        values = np.moveaxis(values, -1, 1)
    labels, names = numbered_labels(given, f"{key}.labels", like)

    def find(name: str | int) -> NDArray[np.str_]:
        found = arrays.get(str(name))
        if found is None or found.shape != given.shape:
            usable = [other for other, array in arrays.items() if array.shape == given.shape]
            raise SourceError(f"{key}: there is no array of one value an example named {name!r}{nearest('', usable)}")
        return found.astype(str)

    return Source(_in_memory(values, labels), find, names)


def _read_npz(path: Path, key: str) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # numpy would leave it open where the archive is damaged
            archive: object = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise SourceError(f"{key}: {path} holds a single array; save inputs and labels with numpy.savez")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise SourceError(
            f"{key}: {path} is no readable npz file ({error}); Python objects in it are never unpickled, save plain "
            "arrays of numbers or text"
        ) from error


def _table(section: CsvSource | ParquetSource, job: Job, key: str, like: Source | None) -> Source:
    kind, name = ("csv", section.csv) if isinstance(section, CsvSource) else ("parquet", section.parquet)
    reserved = None if section.features is not None else job.forget.column
    features = section.features or (like.features if like is not None else None)
    table = read_table(TableFile(existing(job.path(name), key), kind, key), section.label, features, reserved)
    labels, names = numbered_labels(table.labels, f"{key}.label", like)
    return Source(_in_memory(table.inputs, labels), table.column, names, table.features)


def _in_memory(inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> TensorDataset:
    return TensorDataset(torch.as_tensor(np.ascontiguousarray(inputs)), torch.as_tensor(labels))


def _images(section: ImagesSource, path: Path, key: str, like: Source | None) -> Source:
    if section.levels is not None:
        raise SourceError(f"{key}.levels: is read for the task image-to-image alone; remove it")
    folders = picture_folders(existing(path, key, folder=True), section.split, key)
    pictures_in(path, folders, Fitting(), {}).check(one_size=False)
    files = [str(file) for pictures in folders.values() for file in pictures]
    names = list(folders)
    labels = [number for number, pictures in enumerate(folders.values()) for _ in pictures]
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=names)})
    dataset = cast(hf.Dataset, _library.Dataset.from_dict({"image": files, "label": labels}, features=features))
    return _from_hugging_face(dataset, key, "label", like)


def _hugging_face(section: HuggingFaceSource, job: Job, key: str, like: Source | None) -> Source:
    if section.columns:
        raise SourceError(f"{key}.columns: renames columns of text; name the label of a classifier in task.labels")
    dataset = _split(section, job, key)
    label = cast(ClassificationSection, job.task).labels
    if label is None:
        label = next((name for name in LABEL_NAMES if name in dataset.column_names), None)
    if label not in dataset.column_names:
        raise SourceError(
            f"{key}: no label found among the columns {', '.join(dataset.column_names)}; name it in task.labels"
        )
    return _from_hugging_face(dataset, key, str(label), like)


def _split(section: HuggingFaceSource, job: Job, key: str) -> hf.Dataset:
    path = job.path(section.huggingface)
    options = {"name": section.configuration, "revision": section.revision}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return load_split(path if path.exists() else section.huggingface, section.split, **given)
    except SourceError as error:
        raise SourceError(f"{key}: {error}") from error


def _from_hugging_face(dataset: hf.Dataset, key: str, label: str, like: Source | None) -> Source:
    feature = cast(Any, dataset.features[label])
    names = tuple(feature.names) if isinstance(feature, hf.ClassLabel) else None
    if names is None and getattr(feature, "dtype", None) in {"string", "large_string"}:
        raise SourceError(f"{key}: the labels in {label!r} are text; encode them with `class_encode_column` and save")
    if like is not None and like.names and names and names != like.names:
        dataset, names = _aligned(dataset, label, names, like.names, key), like.names

    def find(name: str | int) -> NDArray[np.str_]:
        if name not in dataset.column_names:
            raise SourceError(f"{key}: there is no column {name!r}{nearest(str(name), dataset.column_names)}")
        return _text(column(dataset, name))

    return Source(dataset, find, names, fields=True)


def _aligned(dataset: hf.Dataset, label: str, names: tuple[str, ...], wanted: tuple[str, ...], key: str) -> hf.Dataset:
    """The same dataset with its classes numbered as in the training data."""
    unknown = set(names) - set(wanted)
    if unknown:
        raise SourceError(f"{key}: has classes that the training data lack: {', '.join(sorted(unknown))}")
    renumbered = np.asarray([wanted.index(name) for name in names])[column(dataset, label)]
    kept = dataset.remove_columns([label])
    feature = hf.ClassLabel(names=list(wanted))
    return cast(Any, kept).add_column(label, renumbered.tolist(), feature=feature)


def _text(values: NDArray[Any]) -> NDArray[np.str_]:
    return np.asarray([str(value) for value in values.tolist()])
