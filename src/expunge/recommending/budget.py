"""What forgetting may cost: seconds, or a share of a retrain."""

import sys
from dataclasses import dataclass

from expunge.errors import SettingError

_REMEDY = "give a share of a retrain, such as 0.2 or '20%', or a time, such as '90 s'"


@dataclass(frozen=True)
class Budget:
    """Either a share of a retrain or a time.

    Attributes:
        share: Of a retrain, above 0 and at most 1.
        seconds: Wall time.
    """

    share: float | None = None
    seconds: float | None = None

    @classmethod
    def read(cls, given: "float | str | Budget") -> "Budget":
        """What a person wrote: 0.2, '20%', '90 s'.

        Raises:
            SettingError: It is neither, or out of range.
        """
        if isinstance(given, Budget):
            return given
        text = str(given).strip()
        number, unit = text.rstrip("%s").strip(), text[-1:]
        try:
            value = float(number)
        except ValueError as error:
            raise SettingError(f"budget is {given!r}; {_REMEDY}") from error
        value = value / 100 if unit == "%" else value
        if not 0 < value <= (sys.float_info.max if unit == "s" else 1):
            raise SettingError(f"budget must be above 0 and at most a whole retrain, not {given!r}; {_REMEDY}")
        return cls(seconds=value) if unit == "s" else cls(share=value)

    def __str__(self) -> str:
        """In words."""
        return f"{self.seconds:g} s" if self.seconds is not None else f"{100 * (self.share or 0):g} % of a retrain"
