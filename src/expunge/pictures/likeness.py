"""How like two pictures are, pixel by pixel; on what was hidden, where a mask says so.

Pictures are (batch, channels, height, width) floats in [0, 1], a mask is (batch, 1, height, width) bool, True where
hidden. Every measure is (batch,) in float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from expunge.errors import CorruptionError, DataError, ShapeError

PERFECT = 100.0
"""Decibels from which `peak_signal_to_noise` makes no difference; without it a perfect picture would be infinite."""

_WINDOW, _DEVIATION = 11, 1.5  # pixels; Wang et al. 2004, section III-B
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # (K1 L)² and (K2 L)² there, for pixels in [0, 1]


def reconstruction_error(pictures: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over hidden pixels and channels: (batch,).

    Raises:
        ShapeError: The shapes disagree.
        DataError: A value is NaN or infinite.
        CorruptionError: A mask hides nothing of a picture.
    """
    _require_alike(pictures, truth, mask)
    return _hidden_mean((pictures.double() - truth.double()).square(), mask)


def peak_signal_to_noise(pictures: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """PSNR over hidden pixels and channels in decibels, -10 log10 of the mean squared error, at most 100: (batch,).

    Raises:
        ShapeError: The shapes disagree.
        DataError: A value is NaN or infinite.
        CorruptionError: A mask hides nothing of a picture.
    """
    return -10 * reconstruction_error(pictures, truth, mask).clamp(min=10 ** (-PERFECT / 10)).log10()


def structural_similarity(pictures: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """SSIM, averaged over channels and over the places of hidden pixels: (batch,), 1 for equal pictures.

    At each place, of the Gaussian window around it (11 pixels, standard deviation 1.5, mirrored at the border); windows
    around hidden pixels see visible ones too. Source: Wang et al. 2004, *Image quality assessment: from error
    visibility to structural similarity* (IEEE Transactions on Image Processing 13), equation 13.

    Raises:
        ShapeError: The shapes disagree, or a side is shorter than 6 pixels, which a window cannot be mirrored in.
        DataError: A value is NaN or infinite.
        CorruptionError: A mask hides nothing of a picture.
    """
    _require_alike(pictures, truth, mask)
    if min(pictures.shape[2:]) <= _WINDOW // 2:
        raise ShapeError(
            f"structural similarity needs sides of {_WINDOW // 2 + 1} pixels at least, not "
            f"{pictures.shape[2]} x {pictures.shape[3]}; use peak_signal_to_noise"
        )
    one, other = pictures.double(), truth.double()
    means = [_blurred(values) for values in (one, other)]
    variances = [_blurred(values.square()) - mean.square() for values, mean in zip((one, other), means, strict=True)]
    covariance = _blurred(one * other) - means[0] * means[1]
    luminance = (2 * means[0] * means[1] + _LUMINANCE) / (means[0].square() + means[1].square() + _LUMINANCE)
    rest = (2 * covariance + _CONTRAST) / (variances[0].clamp(min=0) + variances[1].clamp(min=0) + _CONTRAST)
    return _hidden_mean(luminance * rest, mask)


def _blurred(values: Tensor) -> Tensor:
    """Each channel's mean under a Gaussian window around each pixel."""
    half = _WINDOW // 2
    places = torch.arange(-half, half + 1, dtype=values.dtype, device=values.device)
    weights = (-0.5 * (places / _DEVIATION).square()).exp()
    weights = weights / weights.sum()
    batch, channels, height, width = values.shape
    padded = F.pad(values, (half, half, half, half), mode="reflect").reshape(batch * channels, 1, height + 2 * half, -1)
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1)).view(batch, channels, height, width)


def _hidden_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean((1, 2, 3))
    counts = mask.flatten(1).sum(1)
    if bool((counts == 0).any()):
        raise CorruptionError(
            f"the mask hides nothing of {int((counts == 0).sum())} of {len(mask)} pictures, so nothing was filled in"
        )
    return values.where(mask, 0.0).sum((1, 2, 3)) / (counts * values.shape[1])


def _require_alike(pictures: Tensor, truth: Tensor, mask: Tensor | None) -> None:
    if pictures.shape != truth.shape or pictures.ndim != 4:
        raise ShapeError(
            f"pictures of shape {tuple(pictures.shape)} and truth of {tuple(truth.shape)} do not belong together; give "
            "(batch, channels, height, width) of both"
        )
    wanted = (pictures.shape[0], 1, *pictures.shape[2:])
    if mask is not None and (mask.shape != wanted or mask.dtype != torch.bool):
        raise ShapeError(f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; give torch.bool of {wanted}")
    if not bool(torch.isfinite(pictures).all() and torch.isfinite(truth).all()):
        raise DataError("a picture holds NaN or infinity; the model diverged, or the data need cleaning")
