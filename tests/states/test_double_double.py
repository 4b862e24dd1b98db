"""Sums that lose nothing, against Python's rational numbers."""

from fractions import Fraction

import torch

from expunge.states.double_double import DoubleDouble, gram, squares


def wide(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Numbers of very different sizes."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=draw, dtype=torch.double)
    return values * 10.0 ** torch.randint(-9, 10, (rows, columns), generator=draw).double()


def rational(left: torch.Tensor, right: torch.Tensor) -> Fraction:
    return sum((Fraction(a) * Fraction(b) for a, b in zip(left.tolist(), right.tolist(), strict=True)), Fraction(0))


def test_products_of_matrices_have_twice_the_digits() -> None:
    for seed in range(5):
        left, right = wide(60, 3, seed), wide(60, 2, 100 + seed)
        found = gram(left, right)
        for i in range(3):
            for j in range(2):
                exact = rational(left[:, i], right[:, j])
                size = rational(left[:, i].abs(), right[:, j].abs())
                held = Fraction(found.high[i, j].item()) + Fraction(found.low[i, j].item())
                assert abs(held - exact) <= size * Fraction(2) ** -100
                assert (
                    abs(found.value[i, j].item() - float(exact)) <= abs(float(exact)) * 2**-52 + float(size) * 2**-100
                )


def test_a_matrix_with_itself_is_symmetric_and_the_same() -> None:
    values = wide(50, 4, 7)
    one, other = gram(values, values), gram(values, values.clone())
    assert torch.equal(one.value, one.value.T)
    assert torch.allclose(one.value, other.value, rtol=1e-15, atol=0)


def test_more_rows_than_one_piece_holds() -> None:
    left = wide(9000, 1, 1)
    exact = rational(left[:, 0], left[:, 0])
    assert gram(left, left).value.item() == float(exact)


def test_sums_differences_products_and_squares() -> None:
    for seed in range(20):
        a, b, c, d = wide(4, 1, seed)[:, 0]
        one, other = DoubleDouble.of(a) + DoubleDouble.of(b), DoubleDouble.of(c) + DoubleDouble.of(d)
        first, second = Fraction(a.item()) + Fraction(b.item()), Fraction(c.item()) + Fraction(d.item())
        for found, exact in (
            (one + other, first + second),
            (one - other, first - second),
            (one * other, first * second),
        ):
            held = Fraction(found.high.item()) + Fraction(found.low.item())
            assert abs(held - exact) <= (abs(first) + abs(second) + abs(exact)) * Fraction(2) ** -100
        high, low = squares(a)
        assert Fraction(high.item()) + Fraction(low.item()) == Fraction(a.item()) ** 2


def test_an_outlier_leaves_no_trace() -> None:
    rows = torch.randn(51, 3, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    rows[50] = 999_999_999.0  # what stands for "unknown" in many a table
    left = gram(rows, rows) - gram(rows[50:], rows[50:])
    kept = gram(rows[:50], rows[:50])
    assert torch.allclose(left.value, kept.value, rtol=1e-12, atol=1e-12)
    plain = rows.T @ rows - rows[50:].T @ rows[50:]
    assert not torch.allclose(plain, rows[:50].T @ rows[:50], rtol=0.1), "in plain float64 everything is lost"


def test_the_sum_over_an_axis() -> None:
    values = gram(wide(5, 4, 1), wide(5, 3, 2))
    assert torch.allclose(values.sum(1).value, values.value.sum(1), rtol=1e-12)
    assert torch.allclose(values.sum(0).value, values.value.sum(0), rtol=1e-12)
