"""Settings from a file: checked against what takes them, with errors that a person can act on."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from expunge.errors import JobError, SettingError

T = TypeVar("T")

_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
_SHAPES = {
    "dict_type": "must be a section with keys of its own, such as {key: value}",
    "tuple_type": "must be a list, such as [value]",
    "list_type": "must be a list, such as [value]",
}


def checked_call(
    target: Callable[..., T], settings: Mapping[str, Any], key: str, *, also_known: Iterable[str] = ()
) -> T:
    """Call `target` with settings that are checked against, and converted to, the types of its parameters.

    Args:
        target: A dataclass or an annotated function.
        settings: Its arguments by name, as a YAML file gives them.
        key: Where they stand in the job, for error messages.
        also_known: Keys that stand there too and are read elsewhere.

    Raises:
        JobError: A setting is unknown, missing, of the wrong type, or refused by `target`.
    """
    parameters = inspect.signature(target).parameters.values()
    fields: dict[str, Any] = {
        parameter.name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for parameter in parameters
    }
    schema: type[BaseModel] = create_model("Settings", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        values = schema.model_validate(dict(settings))
        return target(**{name: getattr(values, name) for name in values.model_fields_set})
    except ValidationError as error:
        raise JobError(
            readable(error, prefix=key, known=lambda location: [*fields, *also_known] if not location else ())
        ) from error
    except SettingError as error:
        raise JobError(f"{key}: {error}") from error


def readable(
    error: ValidationError,
    *,
    prefix: str = "",
    known: Callable[[Sequence[str | int]], Iterable[str]] = lambda _: (),
    path: Callable[[Sequence[str | int]], Sequence[str | int]] = lambda location: location,
) -> str:
    """One line for each complaint, starting with the dotted key.

    What was given is never quoted: it may name a person.

    Args:
        error: What pydantic found.
        prefix: Dotted key under which the validated part stands.
        known: Maps the location of a section to the keys that it may have.
        path: Turns pydantic's location into the one in the file.
    """
    lines: list[str] = []
    for complaint in error.errors(include_url=False, include_input=False):
        location = complaint["loc"]
        dotted = ".".join(str(part) for part in ((prefix,) if prefix else ()) + tuple(path(location)))
        if complaint["type"] in _UNKNOWN:
            message = f"unknown key{nearest(str(location[-1]), known(location[:-1]))}"
        elif complaint["type"] in {"missing", "missing_argument"}:
            message = "is missing"
        else:
            message = _SHAPES.get(complaint["type"]) or complaint["msg"].removeprefix("Value error, ")
        lines.append(f"{dotted}: {message}" if dotted else message)
    return "\n".join(lines)


def nearest(given: str, known: Iterable[str]) -> str:
    """An ending for an error message: the known name that is closest to `given`, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(names)}" if names else ""
