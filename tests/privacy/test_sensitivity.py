"""Bounds against what they bound, on random and on the worst inputs."""

import math

import pytest
import torch
from torch import Tensor

from expunge.errors import SettingError
from expunge.privacy import (
    basaran_sensitivity,
    bernstein_deviation,
    curvature_drift,
    curvature_mismatch,
    guo_sensitivity,
    newton_remainder,
    sekhari_sensitivity,
    uniform_deviation,
)
from expunge.states import HeadLoss, HeadRows

CLASSES, WIDTH = 4, 5


def rows(count: int, seed: int, loss: HeadLoss, norm: float) -> HeadRows:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, WIDTH, generator=generator, dtype=torch.double)
    features *= norm / features.norm(dim=1, keepdim=True)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return HeadRows(features, labels, CLASSES, False, loss)


def spectral(matrix: Tensor) -> float:
    whole = matrix if matrix.ndim == 2 else torch.block_diag(*matrix)
    return float(torch.linalg.matrix_norm(whole, 2))


def probe(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = 3 * torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.double)
    return weights, torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.double)


@pytest.mark.parametrize("loss", HeadLoss)
@pytest.mark.parametrize("norm", [0.5, 1.0, 2.0])
def test_no_row_exceeds_the_constants_of_its_loss(loss: HeadLoss, norm: float) -> None:
    for seed in range(200):
        row = rows(1, seed, loss, norm)
        weights, direction = probe(seed)
        direction /= direction.norm()
        assert float(row.gradient_sum(weights).norm()) <= loss.lipschitz(norm, CLASSES)
        assert spectral(row.curvature_sum(weights)) <= loss.smoothness(norm) * (1 + 1e-12)
        step = 1e-4
        change = row.curvature_sum(weights + step * direction) - row.curvature_sum(weights - step * direction)
        assert spectral(change) / (2 * step) <= loss.hessian_lipschitz(norm) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("loss", "constant"),
    [(HeadLoss.SOFTMAX, "smoothness"), (HeadLoss.SOFTMAX, "hessian"), (HeadLoss.ONE_VS_REST, "smoothness"),
     (HeadLoss.ONE_VS_REST, "hessian")],
)  # fmt: skip
def test_the_constants_are_reached(loss: HeadLoss, constant: str) -> None:
    """Two classes alone carry all probability in the worst case: at one half for β, at (1 ± 1/√3) / 2 for M."""
    share = 0.5 if constant == "smoothness" else 0.5 * (1 + 1 / math.sqrt(3))
    logit = math.log(share / (1 - share))
    row = HeadRows(torch.eye(1, dtype=torch.double), torch.zeros(1, dtype=torch.long), CLASSES, False, loss)
    softmax = loss is HeadLoss.SOFTMAX
    weights = torch.full((CLASSES, 1), -60.0, dtype=torch.double)
    weights[0], weights[1] = logit, 0.0 if softmax else -60.0
    direction = torch.zeros_like(weights)
    direction[0], direction[1] = (math.sqrt(0.5), -math.sqrt(0.5)) if softmax else (1.0, 0.0)
    if constant == "smoothness":
        assert spectral(row.curvature_sum(weights)) == pytest.approx(loss.smoothness(1.0), rel=1e-6)
    else:
        step = 1e-4
        change = row.curvature_sum(weights + step * direction) - row.curvature_sum(weights - step * direction)
        assert spectral(change) / (2 * step) == pytest.approx(loss.hessian_lipschitz(1.0), rel=1e-6)


@pytest.mark.parametrize("loss", HeadLoss)
@pytest.mark.parametrize("length", [1e-3, 0.1, 1.0, 5.0])
def test_the_remainder_of_a_step_is_bounded(loss: HeadLoss, length: float) -> None:
    by_curvature = 0
    for seed in range(100):
        held = rows(7, seed, loss, 1.0)
        weights, step = probe(seed)
        step *= length / step.norm()
        along = held.product_sum(held.probabilities(weights), step)
        left = held.gradient_sum(weights + step) - held.gradient_sum(weights) - along
        curvature = float((along * step).sum()) / len(held)
        found = float(left.norm()) / len(held)
        bound = newton_remainder(length, curvature, loss.hessian_lipschitz(1.0), loss.concordance(1.0))
        assert found <= bound + 1e-15
        by_curvature += bound < loss.hessian_lipschitz(1.0) / 2 * length**2
    assert by_curvature > 50 or length > 1, "where weights are large the curvature is small, and so is the bound"


def test_the_remainder_without_cancellation() -> None:
    around = [newton_remainder(t, 1e-9 * t**2, 1e9, 1.0) / (1e-9 * t**2) for t in (0.99e-2, 1.01e-2)]
    assert around[0] == pytest.approx(0.5 + 0.0099 / 6, rel=1e-4)
    assert around[1] == pytest.approx(0.5 + 0.0101 / 6, rel=1e-4)
    assert newton_remainder(1e3, 1.0, 2.0, 1.0) == 1e6


@pytest.mark.parametrize("loss", HeadLoss)
@pytest.mark.parametrize("moved", [1e-3, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("alike", [False, True])
def test_a_step_with_curvature_from_elsewhere_is_bounded(loss: HeadLoss, moved: float, alike: bool) -> None:
    """The two parts of what it leaves: drift and remainder; with steps along the way that the weights went, or not."""
    by_concordance = 0
    for seed in range(60):
        held = rows(7, seed, loss, 1.0)
        former, way = probe(seed)
        way *= moved / way.norm()
        step = way.clone() if alike else probe(seed + 1000)[1]
        step *= 0.3 / step.norm()
        there, here = held.probabilities(former), held.probabilities(former + way)
        along_former, along = held.product_sum(there, step), held.product_sum(here, step)
        curvature, spread = (float((v * held.product_sum(there, v)).sum()) / len(held) for v in (step, way))
        slopes = loss.hessian_lipschitz(1.0), loss.concordance(1.0)
        drift = curvature_drift(0.3, curvature, moved, math.sqrt(spread), *slopes)
        assert float((along - along_former).norm()) / len(held) <= drift + 1e-15
        left = held.gradient_sum(former + way + step) - held.gradient_sum(former + way) - along
        assert float(left.norm()) / len(held) <= newton_remainder(0.3, curvature, *slopes, moved) + 1e-15
        by_concordance += drift < slopes[0] * moved * 0.3
    assert by_concordance > 30 or moved > 0.1, "where weights are large the curvature is small, and so is the bound"


def test_no_way_means_no_drift_and_the_same_remainder() -> None:
    assert curvature_drift(0.3, 0.1, 0.0, 0.0, 1.0, 1.0) == 0.0
    assert newton_remainder(0.3, 0.01, 1.0, 1.0, 0.0) == newton_remainder(0.3, 0.01, 1.0, 1.0)
    assert newton_remainder(0.3, 0.01, 1.0, 1.0, 0.5) == newton_remainder(0.3, 0.01, 1.0, 1.0) * math.exp(0.5)
    assert curvature_drift(0.3, 0.1, 1e3, 1.0, 2.0, 1.0) == 2.0 * 1e3 * 0.3


def test_a_sample_of_curvatures_strays_less_than_bernstein_says() -> None:
    failure, count = 0.05, 400
    weights = 0.5 * probe(0)[0]
    population = rows(40_000, 1, HeadLoss.SOFTMAX, 1.0).curvature_sum(weights) / 40_000
    bound = bernstein_deviation(count, 0.5, CLASSES * WIDTH, failure)
    strays = [
        spectral(rows(count, seed, HeadLoss.SOFTMAX, 1.0).curvature_sum(weights) / count - population)
        for seed in range(2, 42)
    ]
    assert max(strays) <= bound
    assert bound < 0.5, "it says something"
    assert bernstein_deviation(4 * count, 0.5, 20, failure) < bound / 1.9


def test_the_uniform_deviation_holds_for_fitted_weights_too() -> None:
    """At weights fitted to a small sample, where a bound for fixed weights could fail."""
    from expunge.states import fit_head

    l2, count = 0.1, 60
    large = rows(40_000, 1, HeadLoss.SOFTMAX, 1.0)
    bound = uniform_deviation(
        count, 0.5, 0.05, weight_norm=math.sqrt(2 * math.log(CLASSES) / l2), feature_norm=1.0,
        slopes=HeadLoss.SOFTMAX.slopes(1.0), outputs=CLASSES,
    )  # fmt: skip
    for seed in range(2, 7):
        small = rows(count, seed, HeadLoss.SOFTMAX, 1.0)
        weights = fit_head(small, l2, tolerance=1e-8)
        stray = spectral(small.curvature_sum(weights) / count - large.curvature_sum(weights) / len(large))
        assert stray <= bound


def test_the_mismatch_never_exceeds_the_trivial_bound_and_then_costs_no_delta() -> None:
    useful = curvature_mismatch(0.1, 0.5, 0.02, 0.03, 1e-6)
    assert useful.total == pytest.approx(0.1)
    assert useful.failure == 1e-6
    useless = curvature_mismatch(0.9, 0.5, 0.2, 0.03, 1e-6)
    assert (useless.total, useless.failure) == (0.5, 0.0)
    with pytest.raises(SettingError, match="must lie in"):
        curvature_mismatch(1.5, 0.5, 0.0, 0.0, 1e-6)


def test_the_published_bounds() -> None:
    """The table of the specification: n1 = n2 = 25,000, m = 2,500, α = 1.01, β = L = γ = 1, gradient 1."""
    constants = {"strong_convexity": 1.01, "smoothness": 1.0, "lipschitz": 1.0, "hessian_lipschitz": 1.0}
    for distance, wanted in ((0.0, 0.0194), (0.1, 0.0436), (0.3, 0.0919), (1.0, 0.2609)):
        found = basaran_sensitivity(2500, 25_000, 25_000, distance, 1.0, **constants)
        assert found == pytest.approx(wanted, abs=6e-5)
    assert basaran_sensitivity(2500, 25_000, 20_000, 0.0, 1.0, **constants) > 0.0194 + 0.01, "sizes that differ count"
    with pytest.raises(SettingError, match=r"n α - m β is .*forget fewer"):
        basaran_sensitivity(2500, 25_000, 2000, 0.0, 1.0, **constants)
    assert sekhari_sensitivity(10, 100, strong_convexity=0.1, lipschitz=2.0, hessian_lipschitz=0.5) == pytest.approx(40)
    assert guo_sensitivity(101, l2=0.1, gamma=0.25) == pytest.approx(10)
