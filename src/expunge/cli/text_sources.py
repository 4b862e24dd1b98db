"""Text from where the job says it is: JSON lines, published benchmarks, Hugging Face datasets, the user's code."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from expunge.cli.job import Job
from expunge.cli.loading import existing
from expunge.cli.settings import nearest
from expunge.cli.source_sections import (
    HuggingFaceSource,
    JsonLinesSource,
    PistolSource,
    PythonSource,
    SourceSection,
    TofuSource,
)
from expunge.cli.sources import Source, load_function_source
from expunge.corpora import Pistol, Row, Tofu, read_hugging_face, read_json_lines
from expunge.data import MapDataset, column
from expunge.errors import ExpungeError, SourceError

_KINDS = "jsonl, tofu, pistol, huggingface, python"


def load_text(section: SourceSection, job: Job, key: str) -> Source:
    """Load a source of text; the arguments are those of `expunge.cli.sources.load_source`.

    Raises:
        SourceError: It cannot be loaded, or is no source of text.
    """
    if isinstance(section, PythonSource):
        return load_function_source(section, job, key)
    try:
        return _by_column(_rows(section, job, key), key)
    except SourceError as error:
        raise error if str(error).startswith(key) else SourceError(f"{key}: {error}") from error


def _rows(section: SourceSection, job: Job, key: str) -> MapDataset:
    match section:
        case JsonLinesSource():
            return _renamed(read_json_lines(existing(job.path(section.jsonl), key)), section.columns or {}, key)
        case TofuSource():
            return _tofu(section, job)
        case PistolSource():
            return _pistol(section, job)
        case HuggingFaceSource():
            path = job.path(section.huggingface)
            options = {"name": section.configuration, "revision": section.revision}
            given = {name: value for name, value in options.items() if value is not None}
            name = str(path) if path.exists() else section.huggingface
            return read_hugging_face(name, section.split, columns=section.columns, **given)
        case _:
            raise SourceError(f"{key}: holds no text that a language model could read; give one of {_KINDS}")


def _tofu(section: TofuSource, job: Job) -> list[Row]:
    benchmark = Tofu.read(None if section.tofu is None else job.path(section.tofu))
    if section.authors is None:
        return benchmark.rows
    first, last = section.authors
    if not first <= last < len(benchmark.authors):
        raise SourceError(f"authors are {first} to {last}; they run from 0 to {len(benchmark.authors) - 1}")
    return [row for row in benchmark.rows if first <= int(row["author"]) <= last]


def _pistol(section: PistolSource, job: Job) -> list[Row]:
    benchmark = Pistol.read(None if section.pistol is None else job.path(section.pistol), sample=section.sample)
    if section.edges is None:
        return benchmark.rows
    try:
        return [benchmark.rows[place] for place in benchmark.on(section.edges).tolist()]
    except ExpungeError as error:
        raise SourceError(f"edges: {error}") from error


def _renamed(rows: list[Row], columns: Mapping[str, str], key: str) -> list[Row]:
    absent = [name for name in columns if any(name not in row for row in rows)]
    if absent:
        raise SourceError(f"{key}.columns: some lines have no field {absent[0]!r}{nearest(absent[0], rows[0])}")
    return [{columns.get(name, name): value for name, value in row.items()} for row in rows] if columns else rows


def _by_column(rows: MapDataset, key: str) -> Source:
    def find(name: str | int) -> NDArray[np.str_]:
        if isinstance(rows, list):
            fields: list[Row] = rows
            without = sum(name not in row for row in fields)
            if without:
                raise SourceError(
                    f"{key}: {without} of {len(fields)} examples have no field {name!r}{nearest(str(name), fields[0])}"
                )
        elif name not in (known := list(rows[0])):
            raise SourceError(f"{key}: there is no column {name!r}{nearest(str(name), known)}")
        return np.asarray([str(value).strip() for value in column(rows, name).tolist()])

    return Source(rows, find, fields=True)
