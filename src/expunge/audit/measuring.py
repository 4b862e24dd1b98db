"""Measuring one model after another, and how long that will take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from expunge.audit.choosing import Expected
from expunge.audit.portrait import Portrait, Sitting
from expunge.training import bar

_WORTH_SAYING = 5.0  # seconds
_LONGER_THAN_A_START = 10.0  # seconds: the first model pays for what is set up once, of which this much shows nothing


@dataclass(frozen=True)
class ExpectedMeasuring:
    """What is left of an audit once the oracles are trained and the first model, or the first two, are measured.

    Attributes:
        models: How many are still to be measured.
        seconds: About how long that takes: as long for each as for the quicker of those.
    """

    models: int
    seconds: float


Announce = Callable[[Expected | ExpectedMeasuring], None]
"""Is told what an audit will cost: before anything is trained, and once the first models are measured."""


def portrayed(sitting: Sitting, models: Sequence[nn.Module], announce: Announce | None) -> list[Portrait]:
    """The portraits of these models; one more is still to come, that of what is audited."""
    portraits: list[Portrait] = []
    seconds: list[float] = []
    for model in models[:2]:
        started = time.monotonic()
        portraits.append(sitting.portray(sitting.run.frozen(model)))
        seconds.append(time.monotonic() - started)
        if seconds[0] > _LONGER_THAN_A_START:
            break
    tell_of_measuring(announce, len(models) + 1 - len(portraits), min(seconds))
    with bar("audit", len(models), done=len(portraits), enabled=sitting.run.execution.progress) as display:
        for model in models[len(portraits) :]:
            portraits.append(sitting.portray(sitting.run.frozen(model)))
            display.advance()
    return portraits


def tell_of_measuring(announce: Announce | None, models: int, seconds_each: float) -> None:
    """Announce what is left where it is more than a few seconds."""
    if announce is not None and models * seconds_each > _WORTH_SAYING:
        announce(ExpectedMeasuring(models, models * seconds_each))
