"""The analytic Gaussian mechanism against published figures and against arithmetic with eighty digits."""

import math

import mpmath
import pytest

from expunge.errors import SettingError
from expunge.privacy import gaussian_delta, gaussian_epsilon, gaussian_sigma, require_request

GRID = [(epsilon, delta) for epsilon in (1e-6, 1e-3, 0.1, 0.5, 1, 3, 10, 50, 100) for delta in (1e-12, 1e-5, 0.1, 0.9)]


def exact_delta(epsilon: float, sigma: float) -> float:
    with mpmath.workdps(80):
        ratio, loss = mpmath.mpf(sigma), mpmath.mpf(epsilon)
        upper, lower = 1 / (2 * ratio) - loss * ratio, -1 / (2 * ratio) - loss * ratio
        return float(mpmath.ncdf(upper) - mpmath.exp(loss) * mpmath.ncdf(lower))


@pytest.mark.parametrize(("epsilon", "ratio"), [(1.0, 3.7306), (0.5, 7.032)])
def test_published_figures(epsilon: float, ratio: float) -> None:
    assert gaussian_sigma(epsilon, 1e-5) == pytest.approx(ratio, abs=5e-4)
    assert gaussian_sigma(epsilon, 1e-5, 0.02) == pytest.approx(0.02 * ratio, abs=1e-5)


@pytest.mark.parametrize(("epsilon", "delta"), GRID)
def test_any_of_the_three_from_the_other_two(epsilon: float, delta: float) -> None:
    sigma = gaussian_sigma(epsilon, delta)
    assert exact_delta(epsilon, sigma) == pytest.approx(delta, rel=1e-7)
    assert gaussian_delta(epsilon, sigma) == pytest.approx(delta, rel=1e-7)
    assert gaussian_epsilon(delta, sigma) == pytest.approx(epsilon, rel=1e-6)
    assert gaussian_sigma(epsilon, delta, 3.0) == pytest.approx(3 * sigma)


def test_less_noise_is_never_enough() -> None:
    for epsilon, delta in GRID:
        assert gaussian_delta(epsilon, 0.999 * gaussian_sigma(epsilon, delta)) > delta


def test_less_than_the_classical_formula() -> None:
    assert gaussian_sigma(1, 1e-5) < math.sqrt(2 * math.log(1.25e5)) * 0.8


def test_nothing_to_hide_needs_no_noise() -> None:
    assert gaussian_sigma(1, 1e-5, 0.0) == 0
    assert gaussian_delta(1, 1.0, 0.0) == gaussian_epsilon(1e-5, 1.0, 0.0) == 0
    assert gaussian_epsilon(0.5, 10.0) == 0, "so much noise that delta alone covers the difference"


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf])
def test_an_epsilon_that_promises_nothing(epsilon: float) -> None:
    with pytest.raises(SettingError, match="epsilon must be above 0 and finite"):
        gaussian_sigma(epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, math.nan])
def test_a_delta_that_promises_nothing(delta: float) -> None:
    with pytest.raises(SettingError, match="delta must lie between 0 and 1"):
        gaussian_sigma(1, delta)
    with pytest.raises(SettingError, match="delta must lie between 0 and 1"):
        gaussian_epsilon(delta, 1)


@pytest.mark.parametrize("sensitivity", [-1, math.nan, math.inf])
def test_a_sensitivity_that_is_none(sensitivity: float) -> None:
    with pytest.raises(SettingError, match="sensitivity must be 0 or more"):
        gaussian_sigma(1, 1e-5, sensitivity)


def test_a_delta_of_one_in_n_is_refused() -> None:
    with pytest.raises(SettingError, match=r"delta is 0\.01, which must be below 1/n = 0\.01 of 100 training"):
        require_request(1, 0.01, 100)
    require_request(1, 0.0099, 100)
