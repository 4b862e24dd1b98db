"""Methods by name: those of the library and those that installed packages add as `expunge.methods` entry points."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from expunge.cli.settings import checked_call, nearest
from expunge.errors import JobError, SettingError
from expunge.methods import Method

GROUP = "expunge.methods"


@dataclass(frozen=True)
class Installed:
    """A method under its name, or the reason why it cannot be loaded."""

    name: str
    method: type[Method] | None
    complaint: str | None = None


def installed_methods() -> list[Installed]:
    """Every method on this machine, in order of name."""
    return [_load(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]


def method_from(settings: Mapping[str, Any]) -> Method:
    """The method that the `method` section of a job describes.

    Args:
        settings: `name`, perhaps `preset`, and the method's own settings, which win over the preset's.

    Raises:
        JobError: There is no such method, preset or setting, or a value cannot be used.
    """
    own = dict(settings)
    method, preset = _find(str(own.pop("name"))), own.pop("preset", None)
    try:
        base: Mapping[str, Any] = {} if preset is None else _preset(method, str(preset))
    except SettingError as error:
        raise JobError(f"method.preset: {error}") from error
    return checked_call(method, {**base, **own}, "method")


def _find(name: str) -> type[Method]:
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        raise JobError(f"method.name: unknown{nearest(name, entry_points(group=GROUP).names)}; see `expunge methods`")
    if len(points) > 1:
        packages = ", ".join(sorted(point.value for point in points))
        raise JobError(f"method.name: several installed packages provide it ({packages}); uninstall all but one")
    found = _load(points[0])
    if found.method is None:
        raise JobError(f"method.name: {name} is installed but {found.complaint}; repair or uninstall its package")
    return found.method


def _preset(method: type[Method], name: str) -> Mapping[str, Any]:
    method.preset(name)  # complains, with the names that exist
    return method.presets[name]


def _load(point: EntryPoint) -> Installed:
    try:
        loaded: object = point.load()
    except Exception as error:  # whatever somebody else's package raises must not take the command down
        return Installed(point.name, None, f"cannot be loaded ({type(error).__name__}: {error})")
    if not (inspect.isclass(loaded) and issubclass(loaded, Method)):
        return Installed(point.name, None, f"is not a Method ({point.value})")
    return Installed(point.name, loaded)
