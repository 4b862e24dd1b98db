"""Reading a job file, with changes from the command line and complaints that name the key."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from expunge.cli.job import Job
from expunge.cli.settings import readable
from expunge.cli.source_sections import SOURCES
from expunge.cli.task_sections import TASKS
from expunge.errors import JobError


def load_job(file: Path, changes: Sequence[str] = ()) -> Job:
    """Read a job file.

    Args:
        file: The YAML file.
        changes: Such as `method.repair_learning_rate=0.01`; values are YAML.

    Raises:
        JobError: The file cannot be read or does not describe a job; one line for each complaint.
    """
    try:
        content: object = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"the job file {file} cannot be read: {reason}; check the path") from error
    except yaml.YAMLError as error:
        raise JobError(f"{file} is not valid YAML{_place(error)}; check indentation, colons and quotes") from error
    if not isinstance(content, dict):
        raise JobError(f"{file} holds no mapping of keys such as `model:` and `data:`; see examples/jobs")
    job = cast("dict[str, Any]", content)
    for change in changes:
        _set(job, change)
    folder = file.absolute().parent
    try:
        checked = Job.model_validate(job)
    except ValidationError as error:
        raise JobError(readable(error, known=_keys_at, path=_without_tags)) from error
    return checked.model_copy(update={"base": folder / checked.base})


def _set(job: dict[str, Any], change: str) -> None:
    dotted, equals, text = change.partition("=")
    if not equals or not dotted.strip():
        raise JobError(f"--set {change}: write key=value, such as method.repair_learning_rate=0.01")
    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"--set {dotted}: the value is not valid YAML{_place(error)}") from error
    *sections, last = dotted.strip().split(".")
    place: Any = job
    for section in sections:
        key = _key(place, section, dotted)
        if isinstance(place, dict) and cast("dict[str, Any]", place).get(section) is None:
            place[key] = {}
        place = cast(Any, place[key])
    place[_key(place, last, dotted)] = value


def _key(place: object, part: str, dotted: str) -> str | int:
    """What to index `place` with: a name in a section, a number in a list."""
    if isinstance(place, dict):
        return part
    if isinstance(place, list) and part.isdecimal() and int(part) < len(cast("list[Any]", place)):
        return int(part)
    raise JobError(f"--set {dotted}: there is nothing named {part!r} to set; check the key against the job file")


def _place(error: yaml.YAMLError) -> str:
    # the exception's own text quotes the file, which may name people
    mark: yaml.Mark | None = getattr(error, "problem_mark", None)
    return f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _keys_at(location: Sequence[str | int]) -> Iterable[str]:
    section: type[BaseModel] = Job
    for part in location:
        section = (SOURCES | TASKS).get(str(part)) or _section_type(section, str(part))
    return section.model_fields


def _section_type(section: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = section.model_fields[name].annotation
    candidates = [annotation, *get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), section)


def _without_tags(location: Sequence[str | int]) -> Sequence[str | int]:
    # pydantic names the kind of source between `data.train` and the key, and the kind of task after `task`
    tag = {"data": 2, "task": 1}.get(str(location[0]) if location else "")
    return (*location[:tag], *location[tag + 1 :]) if tag is not None and len(location) > tag + 1 else location
