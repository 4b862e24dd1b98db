"""How far to go in a direction so that a loss just reaches a target."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """Where a search ended.

    Attributes:
        length: Of the step.
        loss: There.
        reached: Whether it is the target or above.
        history: The losses of all steps that were tried, in turn.
    """

    length: float
    loss: float
    reached: bool
    history: list[float]


def reach(
    loss_at: Callable[[float], float],
    target: float,
    *,
    before: float,
    start: float,
    cap: float,
    growth: float,
    bisections: int,
) -> Reach:
    """Grow a step until the loss reaches the target, then halve between the last two.

    A loss that is not finite counts as beyond the target, for that is where it lies. Where the cap comes first, the
    step with the largest loss among those tried is given, and no step where none raised the loss.

    Args:
        loss_at: Loss after a step of a length.
        target: To be reached.
        before: Loss without a step.
        start: First length to try.
        cap: Largest length.
        growth: Factor from one length to the next.
        bisections: Halvings in the end.
    """
    if before >= target:
        return Reach(0.0, before, True, [])
    tried: list[tuple[float, float]] = [(0.0, before)]
    low, length = 0.0, min(start, cap)
    while True:
        tried.append((length, loss_at(length)))
        if not tried[-1][1] < target:
            break
        if length >= cap:
            loss, best = max((loss, -length) for length, loss in tried)
            return Reach(-best, loss, False, [loss for _, loss in tried[1:]])
        low, length = length, min(growth * length, cap)
    high, loss = tried[-1]
    for _ in range(bisections):
        middle = (low + high) / 2
        tried.append((middle, loss_at(middle)))
        if tried[-1][1] < target:
            low = middle
        else:
            high, loss = tried[-1]
    history = [each for _, each in tried[1:]]
    if math.isfinite(loss):
        return Reach(high, loss, True, history)
    best = max((each for each in tried if each[1] < target), key=lambda each: each[1])
    return Reach(best[0], best[1], False, history)
