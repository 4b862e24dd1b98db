"""Sums in twice the working precision, from which a term can be taken away again without a trace.

A plain float64 sum that an outlier went through has lost the digits of everything smaller, and taking the outlier away
does not bring them back. Here products and sums are exact, or rounded at 2^-104, so that what was added can be
subtracted in any order, and no shift is needed that would itself be a function of the data taken away.

Sources: Dekker 1971 and Knuth (The Art of Computer Programming 2, section 4.2.2) for the error-free sum and product;
Ozaki, Ogita, Oishi and Rump 2012, Numerical Algorithms 59, for matrix products without rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 4096
_BITS = (53 - 12) // 2  # a sum of 4,096 products of two numbers of so many bits is an integer below 2^53


@dataclass(frozen=True)
class DoubleDouble:
    """An array of numbers, each the unevaluated sum of two float64.

    Args:
        high: The number rounded to float64.
        low: What that rounding left out.
    """

    high: Tensor
    low: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "DoubleDouble":
        """The same numbers; their low parts are zero."""
        return cls(values.double(), torch.zeros_like(values, dtype=torch.double))

    def __add__(self, other: "DoubleDouble") -> "DoubleDouble":
        high, rest = _two_sum(self.high, other.high)
        low, last = _two_sum(self.low, other.low)
        high, rest = _quick_two_sum(high, rest + low)
        return DoubleDouble(*_quick_two_sum(high, rest + last))

    def __neg__(self) -> "DoubleDouble":
        return DoubleDouble(-self.high, -self.low)

    def __sub__(self, other: "DoubleDouble") -> "DoubleDouble":
        return self + -other

    def __mul__(self, other: "DoubleDouble") -> "DoubleDouble":
        high, rest = _two_product(self.high, other.high)
        return DoubleDouble(*_quick_two_sum(high, rest + (self.high * other.low + self.low * other.high)))

    def over(self, divisor: Tensor) -> "DoubleDouble":
        """The quotient by float64 numbers."""
        first = self.high / divisor
        rest = self - DoubleDouble.of(first) * DoubleDouble.of(divisor)
        return DoubleDouble(*_quick_two_sum(first, rest.high / divisor))

    def __getitem__(self, index: object) -> "DoubleDouble":
        return DoubleDouble(self.high[index], self.low[index])  # pyright: ignore[reportArgumentType]

    @property
    def value(self) -> Tensor:
        """The numbers rounded to float64."""
        return self.high + self.low

    def sum(self, axis: int) -> "DoubleDouble":
        """Sum over one axis, without losing what the low parts hold."""
        total = self[(slice(None),) * axis + (0,)]
        for index in range(1, self.high.shape[axis]):
            total = total + self[(slice(None),) * axis + (index,)]
        return total


def gram(left: Tensor, right: Tensor) -> DoubleDouble:
    """`left.T @ right`, each entry as if computed without rounding.

    Each factor is cut into pieces of few bits, so that the matrix products of pieces are exact in float64.

    Args:
        left: (rows, a) float64, of at most 1e100 in size.
        right: (rows, b) float64, likewise.

    Returns:
        (a, b) sums over rows.
    """
    total = DoubleDouble.of(torch.zeros(left.shape[1], right.shape[1]))
    for rows in torch.arange(len(left)).split(_ROWS):
        first = list(_pieces(left[rows]))
        second = first if right is left else list(_pieces(right[rows]))
        for number, piece in enumerate(first):
            for other_number, other in enumerate(second):
                if right is left and other_number < number:  # the transpose of a product that was added already
                    continue
                product = piece.T @ other
                total = total + DoubleDouble.of(product)
                if right is left and other_number > number:
                    total = total + DoubleDouble.of(product.T)
    return total


def squares(values: Tensor) -> tuple[Tensor, Tensor]:
    """The squares of float64 numbers as two float64 whose sum is exact."""
    return _two_product(values, values)


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Parts that add up to `values`, each a multiple of one power of two a column, of few bits."""
    rest = values
    while bool((rest != 0).any()):
        _, exponent = torch.frexp(rest.abs().amax(0))
        scale = torch.ldexp(torch.ones_like(rest[0]), exponent - _BITS)
        piece = torch.round(rest / scale) * scale
        yield piece
        rest = rest - piece


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum and its exact error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _quick_two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The same where |a| >= |b|."""
    total = a + b
    return total, b - (total - a)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded product and its exact error."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high
