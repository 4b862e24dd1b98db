"""What the sections of a job file have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""A function of the user's, as `package.module:function`."""


class Section(BaseModel):
    """A part of a job; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def exactly_one(section: BaseModel, *names: str) -> None:
    """Raise a ValueError, which pydantic tells, unless one of these keys alone has a value."""
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}, not {' and '.join(given) or 'none'}")
