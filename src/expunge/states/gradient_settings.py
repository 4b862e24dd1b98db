"""What a gradient log keeps, and the file that says so."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from expunge.errors import SettingError
from expunge.settings import require_one_of
from expunge.states.gradient_entry import PRECISIONS
from expunge.states.gradient_layers import Use

Epochs = Literal["first", "all"]


@dataclass(frozen=True)
class LogSettings:
    """What a gradient log keeps.

    Args:
        layers: Patterns; see `expunge.states.gradient_layers.choose`.
        epochs: `all`, or `first`: each example only the first time that it is trained on.
        updates: Keep besides the gradients what the optimiser made of them (Adam, AdamW, SGD).
        precision: `fp32`, or `bf16` for half the room.
    """

    layers: tuple[str, ...] = ("all",)
    epochs: Epochs = "all"
    updates: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        """Check the choices."""
        require_one_of(self, "epochs", ("first", "all"))
        require_one_of(self, "updates", (True, False))
        require_one_of(self, "precision", tuple(PRECISIONS))


class SlotEntry(BaseModel):
    """One logged parameter, as the file names it."""

    model_config = ConfigDict(extra="forbid")

    module: str
    parameter: str
    use: Use
    shape: tuple[int, ...]
    role: str


class Manifest(BaseModel):
    """What the log's file holds."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    settings: dict[str, Any]
    slots: list[SlotEntry]
    started_from: str
    model: str | None = None


def log_settings(given: Mapping[str, Any]) -> LogSettings:
    """Settings by name.

    Raises:
        SettingError: There is no such setting, or it has a value that cannot be used.
    """
    known = [each.name for each in fields(LogSettings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise SettingError(
            f"there is no setting {', '.join(unknown)}; a gradient log has the settings {', '.join(known)}"
        )
    layers = given.get("layers", ("all",))
    chosen: dict[str, Any] = {**given, "layers": (layers,) if isinstance(layers, str) else tuple(layers)}
    return LogSettings(**chosen)
