"""Likeness of pictures against hand formulas and against torchmetrics."""

import math

import pytest
import torch
from torch import Tensor

from expunge.corruptions import CentreCrop
from expunge.errors import CorruptionError, DataError, ShapeError
from expunge.pictures import peak_signal_to_noise, reconstruction_error, structural_similarity

ALL = (reconstruction_error, peak_signal_to_noise, structural_similarity)


def pair(batch: int = 3, channels: int = 3, height: int = 16, width: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(batch, channels, height, width, generator=generator)
    return (truth + 0.2 * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


def test_error_and_psnr_on_hidden_pixels_by_hand() -> None:
    truth = torch.zeros(2, 2, 6, 6)
    pictures = truth.clone()
    pictures[0, 0, 1, 1], pictures[0, 1, 1, 2] = 0.5, 0.1  # hidden
    pictures[0, :, 5] = 1.0  # visible
    mask = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    mask[:, 0, 1, 1:3] = True
    expected = (0.5**2 + 0.1**2) / 4
    assert reconstruction_error(pictures, truth, mask).tolist() == pytest.approx([expected, 0])
    assert peak_signal_to_noise(pictures, truth, mask).tolist() == pytest.approx([-10 * math.log10(expected), 100])
    whole = (0.25 + 0.01 + 12) / 72
    assert reconstruction_error(pictures, truth).tolist() == pytest.approx([whole, 0])


def test_ssim_of_two_flat_pictures_by_hand() -> None:
    one, other = 0.8, 0.3  # no variance anywhere, so luminance alone counts
    found = structural_similarity(torch.full((1, 1, 8, 8), one), torch.full((1, 1, 8, 8), other))
    assert found.item() == pytest.approx((2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4), abs=1e-6)
    pictures, truth = pair()
    assert structural_similarity(truth, truth).tolist() == pytest.approx([1, 1, 1])
    assert bool((structural_similarity(1 - truth, truth) < 0).all())  # covariances are negative
    assert bool((structural_similarity(pictures, truth) < 1).all())


def test_ssim_of_one_window_by_hand() -> None:
    """At the middle pixel of an 11 x 11 picture the window is the picture."""
    pictures, truth = pair(1, 1, 11, 11)
    mask = torch.zeros(1, 1, 11, 11, dtype=torch.bool)
    mask[0, 0, 5, 5] = True
    places = torch.arange(11) - 5
    weights = torch.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2)).double()
    weights /= weights.sum()
    x, y = pictures[0, 0].double(), truth[0, 0].double()
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (variance_x + variance_y + 9e-4)
    assert structural_similarity(pictures, truth, mask).item() == pytest.approx(expected.item(), abs=1e-10)


def test_like_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    pictures, truth = pair()
    _, places = functional.structural_similarity_index_measure(
        pictures.double(), truth.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    mask = CentreCrop(0.5).mask((3, 3, 16, 20), 0, torch.arange(3))
    expected = torch.stack([places[row][:, mask[row, 0]].mean() for row in range(3)])
    torch.testing.assert_close(structural_similarity(pictures, truth, mask), expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(structural_similarity(pictures, truth), places.mean((1, 2, 3)), rtol=0, atol=1e-8)
    decibels = functional.peak_signal_noise_ratio(
        pictures.double(), truth.double(), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    torch.testing.assert_close(peak_signal_to_noise(pictures, truth), decibels, rtol=0, atol=1e-6)


def test_what_is_visible_does_not_count() -> None:
    pictures, truth = pair()
    mask = torch.zeros(3, 1, 16, 20, dtype=torch.bool)
    mask[..., 14:] = True
    changed = torch.where(mask, pictures, torch.rand_like(pictures))
    for measure in ALL[:2]:
        assert torch.equal(measure(pictures, truth, mask), measure(changed, truth, mask))
    far = torch.zeros_like(mask)
    far[..., :8] = True  # further than half a window from what is hidden
    changed = pictures.where(~far, torch.rand_like(pictures))
    assert torch.equal(structural_similarity(pictures, truth, mask), structural_similarity(changed, truth, mask))


@pytest.mark.parametrize("measure", ALL)
def test_what_cannot_be_compared_is_refused(measure: type) -> None:
    pictures, truth = pair()
    with pytest.raises(ShapeError, match="do not belong together"):
        measure(pictures, truth[:2])
    with pytest.raises(ShapeError, match=r"the mask is torch.bool of shape \(3, 3, 16, 20\); .* \(3, 1, 16, 20\)"):
        measure(pictures, truth, torch.ones(3, 3, 16, 20, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"the mask is torch.int64"):
        measure(pictures, truth, torch.ones(3, 1, 16, 20, dtype=torch.long))
    with pytest.raises(CorruptionError, match="hides nothing of 3 of 3 pictures"):
        measure(pictures, truth, torch.zeros(3, 1, 16, 20, dtype=torch.bool))
    with pytest.raises(DataError, match="NaN or infinity"):
        measure(pictures.clone().fill_(math.nan), truth)


def test_pictures_smaller_than_a_window_have_no_ssim() -> None:
    with pytest.raises(ShapeError, match="sides of 6 pixels at least, not 5 x 9; use peak_signal_to_noise"):
        structural_similarity(torch.rand(1, 1, 5, 9), torch.rand(1, 1, 5, 9))
