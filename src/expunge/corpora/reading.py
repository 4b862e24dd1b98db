"""Rows of text from files, checked against the fields that they must have; what they say is never quoted."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import datasets as hf

from expunge.errors import SourceError
from expunge.hugging_face import load_split

Row = dict[str, Any]
"""Fields of an example by name."""

DATA_VARIABLE = "EXPUNGE_DATA_DIR"


def data_folder(name: str, folder: str | Path | None = None) -> Path:
    """The folder of a benchmark: `folder` itself, or `name` in the folder that EXPUNGE_DATA_DIR names.

    Raises:
        SourceError: The variable is not set, or there is no such folder.
    """
    root = os.environ.get(DATA_VARIABLE)
    if folder is None and not root:
        raise SourceError(f"where is {name}? Pass `folder=`, or set {DATA_VARIABLE} to the folder that holds {name}/")
    path = Path(folder) if folder is not None else Path(str(root)) / name
    if not path.is_dir():
        raise SourceError(f"there is no folder {path}; download {name} there, or name the folder it lies in")
    return path


def read_json_lines(path: str | Path, fields: Mapping[str, type] | Iterable[str] = ()) -> list[Row]:
    """Rows of a file with one JSON object a line; empty lines are passed over.

    Args:
        path: The file.
        fields: Those that every row must have, perhaps with the kind of their value; by default none.

    Raises:
        SourceError: The file is missing or empty, or a line is no JSON object or lacks a field; the line is named.
    """
    text = _text(Path(path))
    rows: list[Row] = []
    # str.splitlines would also cut at U+2028, U+0085 and others, which JSON allows inside a string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_object(line, f"line {number} of {path}"))
            require_fields(rows[-1], fields, f"line {number} of {path}")
    if not rows:
        raise SourceError(f"{path} is empty; one JSON object a line is needed")
    return rows


def read_json_list(path: Path, fields: Mapping[str, type]) -> list[Row]:
    """Rows of a file that is one JSON list of objects.

    Raises:
        SourceError: The file is missing, is something else, or a row lacks a field.
    """
    try:
        found: object = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise SourceError(f"{path} is no JSON (line {error.lineno}); restore the file") from None
    if not isinstance(found, list) or not found:
        raise SourceError(f"{path} must hold a JSON list of objects, not a {type(found).__name__}")
    rows = cast("list[Row]", found)
    for number, row in enumerate(rows):
        require_fields(row, fields, f"entry {number} of {path}")
    return rows


def read_hugging_face(
    name: str | Path, split: str = "train", *, columns: Mapping[str, str] | None = None, **options: Any
) -> hf.Dataset:
    """A Hugging Face dataset of text, from the hub or a folder; see `expunge.hugging_face.load_split`.

    Args:
        name: Name on the hub, or path.
        split: Which part.
        columns: New names of columns, as in `{"prompt": "question", "response": "answer"}`.
        options: Passed on to `datasets.load_dataset`, such as `revision`.

    Raises:
        SourceError: It cannot be loaded, or lacks the split or a column.
    """
    found = load_split(name, split, **options)
    missing = set(columns or {}) - set(found.column_names)
    if missing:
        raise SourceError(f"{name} has no column {', '.join(sorted(missing))}; it has {', '.join(found.column_names)}")
    return found.rename_columns(dict(columns)) if columns else found


def require_fields(row: object, fields: Mapping[str, type] | Iterable[str], where: str) -> None:
    """Raise a SourceError that says where, unless a row is an object with these fields of these kinds."""
    if not isinstance(row, dict):
        raise SourceError(f"{where} is a {type(row).__name__}; a JSON object is needed")
    kinds = fields if isinstance(fields, Mapping) else dict.fromkeys(fields, object)
    for name, kind in kinds.items():
        if name not in row:
            known = ", ".join(map(str, cast(Row, row)))
            raise SourceError(f"{where} has no field {name!r}; it has {known or 'none'}")
        if not isinstance(row[name], kind):
            raise SourceError(f"{where}: {name!r} must be a {kind.__name__}, not a {type(row[name]).__name__}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 text (byte {error.start}); save it as such") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); check the path") from error


def _object(line: str, where: str) -> Row:
    try:
        found: object = json.loads(line)
    except json.JSONDecodeError as error:  # whose own message would quote nothing, but whose traceback holds the line
        raise SourceError(f"{where} is no JSON ({error.msg} at character {error.colno}); correct the line") from None
    if not isinstance(found, dict):
        raise SourceError(f"{where} is a {type(found).__name__}; a JSON object is needed")
    return cast(Row, found)
