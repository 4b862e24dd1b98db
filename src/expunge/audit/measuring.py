"""Measuring one model after another, and how long that will take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from expunge.audit.choosing import Expected
from expunge.audit.portrait import Portrait, Sitting
from expunge.training import bar

_WORTH_SAYING = 5.0  # seconds


@dataclass(frozen=True)
class ExpectedMeasuring:
    """What is left of an audit once the oracles are trained and the original is measured.

    Attributes:
        models: How many are still to be measured.
        seconds: About how long that takes: as long for each as for the original.
    """

    models: int
    seconds: float


Announce = Callable[[Expected | ExpectedMeasuring], None]
"""Is told what an audit will cost: before anything is trained, and once the first model is measured."""


def portrayed(sitting: Sitting, models: Sequence[nn.Module], announce: Announce | None) -> list[Portrait]:
    """The portraits of these models; one more is still to come, that of what is audited."""
    started = time.monotonic()
    portraits = [sitting.portray(sitting.run.frozen(models[0]))]
    seconds = (time.monotonic() - started) * len(models)
    if announce is not None and seconds > _WORTH_SAYING:
        announce(ExpectedMeasuring(len(models), seconds))
    with bar("audit", len(models), done=1, enabled=sitting.run.execution.progress) as display:
        for model in models[1:]:
            portraits.append(sitting.portray(sitting.run.frozen(model)))
            display.advance()
    return portraits
