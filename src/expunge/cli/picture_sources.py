"""Pictures from where the job says they are: folders, Hugging Face datasets, archives, the user's code."""

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from expunge.cli.job import Job
from expunge.cli.loading import existing
from expunge.cli.settings import checked_call
from expunge.cli.source_sections import HuggingFaceSource, ImagesSource, NpzSource, PythonSource, SourceSection
from expunge.cli.sources import Source, load_function_source, load_source
from expunge.cli.task_sections import ImageToImageSection
from expunge.data import LABEL_NAMES, Example, MapDataset
from expunge.errors import DataError, SourceError
from expunge.hugging_face import load_split
from expunge.pictures import Fitting, Pictures, read_folder, read_hugging_face

_KINDS = "images, huggingface, npz, python"


def load_pictures(section: SourceSection, job: Job, key: str, like: Source | None = None) -> Source:
    """Load a source of pictures; the arguments are those of `expunge.cli.sources.load_source`.

    Pictures of folders and of Hugging Face datasets are brought to the size that the task names as they are read, and
    decoded when they are asked for. Those of an archive are taken as they are.

    Raises:
        SourceError: It cannot be loaded, or is no source of pictures.
        JobError: `task.pictures` cannot be used.
    """
    match section:
        case PythonSource():
            return load_function_source(section, job, key)
        case NpzSource():
            return load_source(section, job, key, like)
        case ImagesSource() | HuggingFaceSource():
            return _decoded(section, job, key, like)
        case _:
            raise SourceError(f"{key}: holds no pictures that could be restored; give one of {_KINDS}")


def load_surrogate(section: SourceSection, job: Job, key: str) -> Source:
    """Load pictures that stand in for training data; the arguments are those of `load_pictures`.

    Labels by the usual names are left out: the surrogate may have other kinds of picture than the training data.

    Raises:
        SourceError: It cannot be loaded, or is no source of pictures.
    """
    source, task = load_pictures(section, job, key), cast(ImageToImageSection, job.task)
    if task.label is not None or (task.image is not None and not source.fields):
        return source
    return replace(source, dataset=_Unlabelled(source.dataset), names=None)


@dataclass(frozen=True)
class _Unlabelled:
    """Examples of a dataset without their labels."""

    labelled: MapDataset

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int, /) -> Example:
        example = self.labelled[index]
        if isinstance(example, tuple | list):
            return cast("tuple[Any, ...]", tuple(example))[:1]
        return {name: example[name] for name in example if name not in LABEL_NAMES}


def _decoded(section: ImagesSource | HuggingFaceSource, job: Job, key: str, like: Source | None) -> Source:
    task = cast(ImageToImageSection, job.task)
    fitting = checked_call(Fitting, task.pictures, "task.pictures")
    try:
        if isinstance(section, ImagesSource):
            folder = existing(job.path(section.images), key, folder=True)
            return _by_column(read_folder(folder, fitting, split=section.split, levels=section.levels), key)
        found = _split(section, job)
        image, label = (name if isinstance(name, str) else None for name in (task.image, task.label))
        names = like.names if like is not None else None
        others = [name for name in (job.forget.column,) if isinstance(name, str) and name in found.column_names]
        read = read_hugging_face(found, fitting, image=image, label=label, names=names, columns=others)
        return _by_column(read, key)
    except SourceError as error:
        raise error if str(error).startswith(key) else SourceError(f"{key}: {error}") from error


def _split(section: HuggingFaceSource, job: Job) -> Any:
    path = job.path(section.huggingface)
    options = {"name": section.configuration, "revision": section.revision}
    given = {name: value for name, value in options.items() if value is not None}
    return load_split(path if path.exists() else section.huggingface, section.split, **given)


def _by_column(pictures: Pictures, key: str) -> Source:
    def find(name: str | int) -> NDArray[np.str_]:
        try:
            return np.asarray([str(value) for value in pictures.column(name).tolist()])
        except DataError as error:
            raise SourceError(f"{key}: {error}") from error

    return Source(pictures, find, pictures.names, fields=True)
