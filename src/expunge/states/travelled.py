"""What a state that moves with its model keeps of where it came from: four sizes and no direction."""

import math
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Travelled:
    """Bounds on what a state of curvature no longer knows after its weights have moved.

    They are sums over the requests so far. Before it is added, each request's share is rounded up to one of four values
    between a number and its double, so that it is no equation that deleted rows could be computed from. That rounding
    raises no bound by more than a fifth.

    Attributes:
        carried: Norm of the objective's gradient over the rows that are left, at the state's weights, at most.
        moved: Distance of the state's weights from those that its curvature was taken at, at most.
        spread: √(dᵀ H d), at most, for the difference d of the two and the sum H of the curvatures of the rows that are
            left, both at the weights that it was taken at. Deletions only lower it.
        stray: Spectral norm of the difference between the state's curvature and that sum H, at most: the curvature of
            rows that are deleted later is taken off at the weights of that time, since the former are not known.
    """

    carried: float = 0.0
    moved: float = 0.0
    spread: float = 0.0
    stray: float = 0.0

    def shrunk(self, before: int, after: int, stray: float) -> Self:
        """The same after rows have left: the sum of gradients that is not known is then a mean over fewer.

        Args:
            before: Rows before that.
            after: Rows that are left.
            stray: How far the curvature that was taken off may be from the one to be taken off.
        """
        return replace(self, carried=self.carried * before / after, stray=self.stray + rounded_up(stray))

    def stepped(self, added: float, length: float, spread: float) -> Self:
        """The same after a step.

        Args:
            added: Gradient norm that the step may have left.
            length: Of the step, ‖s‖.
            spread: √(sᵀ H s), H as for the attribute.
        """
        return replace(
            self,
            carried=self.carried + rounded_up(added),
            moved=self.moved + rounded_up(length),
            spread=self.spread + rounded_up(spread),
        )


def rounded_up(value: float) -> float:
    """The least power of 2^(1/4) that is no smaller; 0 stays 0."""
    if value <= 0:
        return 0.0
    nearest = round(4 * math.log2(value))
    return next(power for power in (2 ** (each / 4) for each in (nearest, nearest + 1)) if power >= value)
