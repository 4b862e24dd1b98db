"""What an audit will cost, and what was trained for it, in words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from expunge.audit.choosing import Expected
from expunge.audit.measuring import ExpectedMeasuring

_WAYS = {
    "in-process": "one after another",
    "batched": "as one",
    "processes": "in several processes",
    "ray": "on Ray",
}


@dataclass
class CostTeller:
    """Tells the user what an audit will cost, and keeps what was said of training.

    Args:
        say: Tells the user.

    Attributes:
        fleets: What was trained or read from the cache.
    """

    say: Callable[[str], None]
    fleets: list[Expected] = field(default_factory=list[Expected])

    def __call__(self, expected: Expected | ExpectedMeasuring) -> None:
        """Tell of one cost."""
        if isinstance(expected, ExpectedMeasuring):
            models = f"the other {expected.models} models" if expected.models > 1 else "the other model"
            self.say(f"  measuring {models} takes {rough_duration(expected.seconds)}")
        else:
            self.fleets.append(expected)
            self.say(f"  {before_training(expected)}")


def before_training(expected: Expected) -> str:
    """One sentence on what will be trained."""
    whole = _whole(expected)
    if not expected.to_train:
        return f"{whole}: all from the cache"
    found = f"{expected.cached} from the cache, " if expected.cached else ""
    sentence = f"{whole}: {found}{expected.to_train} to train {_WAYS[expected.choice.executor]}"
    if expected.seconds is not None:
        return f"{sentence}, {rough_duration(expected.seconds)}"
    if expected.choice.seconds_each is not None:
        return f"{sentence}, {rough_duration(expected.choice.seconds_each)} for each by itself"
    return f"{sentence}; how long that takes is not known: {expected.unknown}"


def after_training(expected: Expected) -> str:
    """One sentence on what was trained, and why in this way."""
    whole = _whole(expected)
    if not expected.to_train:
        return f"{whole}: all from the cache"
    found = f"{expected.cached} from the cache, " if expected.cached else ""
    return f"{whole}: {found}{expected.to_train} trained {_WAYS[expected.choice.executor]} ({expected.choice.reason})"


def training_facts(expected: Expected) -> dict[str, Any]:
    """The same for programs."""
    return {
        "models": expected.title,
        "trained": expected.to_train,
        "cached": expected.cached,
        "executor": expected.choice.executor,
        "reason": expected.choice.reason,
        "expected_seconds": expected.seconds,
    }


def rough_duration(seconds: float) -> str:
    """About how long, no finer than is known."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def _whole(expected: Expected) -> str:
    count = expected.cached + expected.to_train
    return f"{count} {expected.title if count != 1 else expected.title.removesuffix('s')}"
