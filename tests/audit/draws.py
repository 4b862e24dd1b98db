"""Random signals for the tests of attacks and margins."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def normal(
    seed: int, *shapes: int | Sequence[int], mean: float = 0.0, deviation: float = 1.0
) -> list[NDArray[np.float64]]:
    """An array of independent normal values for each shape."""
    random = np.random.default_rng(seed)
    return [random.normal(mean, deviation, shape) for shape in shapes]
