"""Checks of settings: a value that cannot be used is refused when a settings object is made, with the allowed range.

Each function reads fields of a dataclass by name, for use in `__post_init__`. None passes where it is the default of
the field or its type has it, for there it means that the setting is not used.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from enum import Enum
from numbers import Integral, Real
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from expunge.errors import SettingError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def require_positive(settings: "DataclassInstance", *names: str) -> None:
    """Raise SettingError unless each of these fields is a finite number above 0."""
    for name, value in _numbers(settings, names, "be above 0"):
        if not 0 < value < math.inf:
            raise _refusal(name, "be above 0 and finite" if value > 0 else "be above 0", value)


def require_at_least(settings: "DataclassInstance", least: float, *names: str) -> None:
    """Raise SettingError unless each of these fields is a finite number of `least` or more."""
    for name, value in _numbers(settings, names, f"be at least {least}"):
        if not least <= value < math.inf:
            raise _refusal(name, f"be at least {least}{' and finite' if value >= least else ''}", value)


def require_below(settings: "DataclassInstance", limit: float, *names: str) -> None:
    """Raise SettingError unless each of these fields is a number below `limit`."""
    for name, value in _numbers(settings, names, f"be below {limit}"):
        if not value < limit:
            raise _refusal(name, f"be below {limit}", value)


def require_between(settings: "DataclassInstance", low: float, high: float, *names: str) -> None:
    """Raise SettingError unless each of these fields is a number above `low` and below `high`."""
    allowed = f"lie between {low} and {high}"
    for name, value in _numbers(settings, names, allowed):
        if not low < value < high:
            raise _refusal(name, allowed, value)


def require_whole(settings: "DataclassInstance", *names: str, least: int = 1) -> None:
    """Raise SettingError unless each of these fields is a whole number of `least` or more."""
    for name, value in _numbers(settings, names, f"be a whole number of at least {least}"):
        if not isinstance(value, Integral) or int(value) < least:
            raise _refusal(name, f"be a whole number of at least {least}", value)


def require_one_of(settings: "DataclassInstance", name: str, choices: Iterable[Any]) -> None:
    """Raise SettingError unless a field is one of `choices`; text does not pass for a member of an enumeration."""
    value = getattr(settings, name)
    known = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in known):
        raise _refusal(name, f"be one of {', '.join(_spelled(choice) for choice in known)}", value)


def _numbers(settings: "DataclassInstance", names: Iterable[str], allowed: str) -> Iterator[tuple[str, Any]]:
    optional = {field.name for field in fields(settings) if field.default is None or NoneType in get_args(field.type)}
    for name in names:
        value = getattr(settings, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise _refusal(name, allowed, value)
        yield name, value


def _refusal(name: str, allowed: str, value: Any) -> SettingError:
    return SettingError(f"{name} must {allowed}, not {value!r}")


def _spelled(choice: Any) -> str:
    return f"{type(choice).__name__}.{choice.name}" if isinstance(choice, Enum) else repr(choice)
