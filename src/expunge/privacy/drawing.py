"""Gaussian noise that nobody can draw again."""

import math
import os

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri


def secret_gaussian(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Independent standard Gaussian numbers, every bit of which comes from the operating system (`os.urandom`).

    Of 64 bits one is the sign and 52 are the place in the middle of one of 2^52 equal parts of (0, 1/2), at which the
    distribution function is inverted: the largest number is 8.2, which a Gaussian exceeds once in 10^16 draws.
    """
    words = np.frombuffer(os.urandom(8 * math.prod(shape)), dtype="<u8")
    places = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-53
    signs = 1.0 - 2.0 * (words & np.uint64(1)).astype(np.float64)
    drawn: NDArray[np.float64] = ndtri(places)
    return (signs * drawn).reshape(shape)
