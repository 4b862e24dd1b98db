"""The accountant of noisy iterations: tight where it is known, never below what happens."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from expunge.errors import SettingError
from expunge.privacy import gaussian_delta, iteration_shift, renyi_delta, renyi_ratio


def noisy(seed: int, start: float, runs: int, sigma: float, push: float, decay: float, steps: int) -> np.ndarray:
    """Last iterates in one dimension with the worst clipped gradient, which drives both starts apart."""
    random, place = np.random.default_rng(seed), np.full(runs, start)
    for _ in range(steps):
        place = (1 - decay) * place + push * np.sign(place) + sigma * random.standard_normal(runs)
    return place


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.0), (10, 0.0), (10, 0.1), (200, 0.05)])
def test_without_a_gradient_it_is_exact(steps: int, decay: float) -> None:
    """The last iterates are then two Gaussians, a known way apart."""
    found = iteration_shift(steps, model_norm=3, gradient_norm=1e-300, learning_rate=0.5, weight_decay=2 * decay)
    kept = (1 - decay) ** np.arange(steps)
    assert found == pytest.approx(6 * (1 - decay) ** steps / math.sqrt((kept**2).sum()), rel=1e-12)


def test_it_is_the_least_noise_that_shifts_the_start_away() -> None:
    """The shifts of the derivation: none is ever negative, they end at zero, and their squares add up to the bound."""
    for steps, decay, push in itertools.product((1, 3, 50), (1e-9, 0.03, 0.4), (0.0, 0.2, 5.0)):
        rate = 0.1
        found = iteration_shift(
            steps, model_norm=2, gradient_norm=push / rate + 1e-300, learning_rate=rate, weight_decay=decay / rate
        )
        kept = 1 - decay
        shape = kept ** np.arange(steps - 1, -1, -1.0)
        taken = found / math.sqrt((shape**2).sum()) * shape
        apart = 4.0
        for each in taken:
            apart = kept * apart + 2 * push - each
            assert apart >= -1e-9
        assert apart == pytest.approx(0, abs=1e-8)
        assert math.sqrt((taken**2).sum()) == pytest.approx(found, rel=1e-9)


def test_little_decay_is_nearly_none() -> None:
    settings = {"model_norm": 1.0, "gradient_norm": 2.0, "learning_rate": 0.01}
    without = iteration_shift(100, **settings)
    assert without == pytest.approx((2 + 2 * 0.01 * 2 * 100) / 10)
    assert iteration_shift(100, weight_decay=1e-9, **settings) == pytest.approx(without, rel=1e-6)
    assert iteration_shift(100, weight_decay=10, **settings) < without
    with pytest.raises(SettingError, match="learning_rate times weight_decay must be below 1, not 1"):
        iteration_shift(100, weight_decay=100, **settings)


@pytest.mark.parametrize("epsilon", [0.1, 1, 5])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
def test_delta_and_ratio_belong_together_and_cost_little_more_than_a_gaussian(epsilon: float, delta: float) -> None:
    ratio = renyi_ratio(epsilon, delta)
    assert renyi_delta(epsilon, ratio) == pytest.approx(delta, rel=1e-5)
    assert renyi_delta(epsilon, ratio) <= delta
    exact = gaussian_delta(epsilon, 1 / ratio)
    assert 0.005 * delta < exact <= delta, "of two Gaussians it is true, and not by much"


def test_real_iterations_lose_less_than_the_bound() -> None:
    """Probability of any event, here of half lines: P - e^ε Q is at most delta, with a 99.99 % interval."""
    runs, sigma, push, decay, steps = 200_000, 1.0, 0.05, 0.02, 20
    shift = iteration_shift(steps, model_norm=1, gradient_norm=push / 0.1, learning_rate=0.1, weight_decay=decay / 0.1)
    one, other = (noisy(seed, start, runs, sigma, push, decay, steps) for seed, start in ((0, 1.0), (1, -1.0)))
    seen = 0.0
    for epsilon in (0.01, 0.2, 0.5):
        bound = renyi_delta(epsilon, shift / sigma)
        for threshold in np.linspace(-5, 10, 31):
            first, second = (one > threshold).mean(), (other > threshold).mean()
            found = first - math.exp(epsilon) * second
            error = stats.norm.ppf(0.9999) * math.sqrt((first + math.exp(2 * epsilon) * second) / runs)
            assert found <= bound + error
            seen = max(seen, (found - error) / bound)
    assert seen > 0.2, "the two can be told apart, so that the bound is put to a test"


def test_forgetting_the_order_of_the_divergence_is_caught() -> None:
    """A divergence held constant over orders, as in public code, would promise far less noise than is needed."""
    wrong = min(
        0.5 + (math.log(1e5) - math.log(order)) / (order - 1) + math.log1p(-1 / order) for order in range(2, 1000)
    )
    assert wrong < 0.6, "epsilon as that conversion gives it for α μ² / 2 = 0.5 whatever α"
    assert renyi_delta(wrong, 1.0) > 0.1, "and delta as it then is, not 1e-5"
