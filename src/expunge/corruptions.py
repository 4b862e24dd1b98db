"""What an image-to-image model must fill in: masks that hide a part of each image.

A mask is a function of a seed and of the position of an example in its dataset, whatever the batch and the device: a
model is measured on the same hidden pixels as the models that it is compared with. Parts compose: `MaskUnion` hides
what any of several hides, `PatchAligned` grows a mask to whole patches.

Source of the kinds and of their use: Li et al. 2024, *Machine Unlearning for Image-to-Image Generative Models* (arXiv
2402.00351): in-painting of a centre crop, out-painting of an uncrop, reconstruction from a random mask.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import CorruptionError, SettingError, ShapeError
from expunge.settings import require_at_least, require_between, require_one_of, require_whole

Side = Literal["left", "right", "top", "bottom"]
SIDES: tuple[Side, ...] = ("left", "right", "top", "bottom")

Shape = tuple[int, int, int, int]
"""Of a batch of images: (batch, channels, height, width)."""


class Corruption(Protocol):
    """Which pixels of an image are hidden."""

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """Hidden pixels of a batch, a function of the seed and of the positions alone.

        Args:
            shape: Of the images: (batch, channels, height, width).
            seed: Of everything random.
            positions: (batch,) int64, of the examples in their dataset.

        Returns:
            (batch, 1, height, width) bool on the device of `positions`, True where hidden.

        Raises:
            CorruptionError: All of an image would be hidden, or nothing.
            ShapeError: There are not as many positions as images, or the images do not divide into patches.
        """
        ...


@dataclass(frozen=True)
class CentreCrop:
    """Hide a box in the middle, to be in-painted.

    Args:
        share: Of the height and of the width, rounded to whole pixels.

    Raises:
        SettingError: `share` does not lie between 0 and 1.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        """Check the range."""
        require_between(self, 0, 1, "share")

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """The same box in every image; see `Corruption.mask`."""
        height, width = shape[2:]
        hidden = torch.zeros(height, width, dtype=torch.bool)
        hidden[_middle(height, self.share), _middle(width, self.share)] = True
        return _everywhere(hidden, shape, positions)


@dataclass(frozen=True)
class Uncrop:
    """Hide a border, to be out-painted.

    Args:
        left: Share of the width that is hidden at the left, rounded to whole pixels.
        right: The same at the right.
        top: Share of the height that is hidden at the top.
        bottom: The same at the bottom.

    Raises:
        SettingError: A share is negative, none is above 0, or two opposite ones leave nothing between them.
    """

    left: float = 0.0
    right: float = 0.0
    top: float = 0.0
    bottom: float = 0.0

    @classmethod
    def all_around(cls, share: float) -> "Uncrop":
        """The same share at each of the four sides, below one half."""
        return cls(share, share, share, share)

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_at_least(self, 0, *SIDES)
        if max(self.left, self.right, self.top, self.bottom) == 0:
            raise SettingError("left, right, top and bottom are all 0, so nothing would be hidden; set one above 0")
        for one, other in (("left", "right"), ("top", "bottom")):
            together = float(getattr(self, one) + getattr(self, other))
            if together >= 1:
                raise SettingError(f"{one} and {other} must be below 1 together, not {together}")

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """The same border in every image; see `Corruption.mask`."""
        height, width = shape[2:]
        hidden = torch.ones(height, width, dtype=torch.bool)
        rows = slice(round(self.top * height), height - round(self.bottom * height))
        hidden[rows, round(self.left * width) : width - round(self.right * width)] = False
        return _everywhere(hidden, shape, positions)


@dataclass(frozen=True)
class HalfImage:
    """Hide one half.

    Args:
        side: Which; of an odd number of pixels the smaller part is hidden.

    Raises:
        SettingError: There is no such side.
    """

    side: Side = "right"

    def __post_init__(self) -> None:
        """Check the side."""
        require_one_of(self, "side", SIDES)

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """The same half of every image; see `Corruption.mask`."""
        hidden = torch.zeros(shape[2:], dtype=torch.bool)
        along = hidden if self.side in {"top", "bottom"} else hidden.T
        count = len(along) // 2
        along[slice(None, count) if self.side in {"top", "left"} else slice(len(along) - count, None)] = True
        return _everywhere(hidden, shape, positions)


@dataclass(frozen=True)
class RandomMask:
    """Hide patches at random, equally many in every image.

    Each patch of each image has a number, a hash of seed, position and patch; those with the smallest are hidden.

    Args:
        patch: Height and width of a patch in pixels.
        ratio: Share of the patches that is hidden, rounded to whole patches. The default is that of masked
            autoencoders (He et al. 2022, arXiv 2111.06377).

    Raises:
        SettingError: A number is out of range.
    """

    patch: int
    ratio: float = 0.75

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "patch")
        require_between(self, 0, 1, "ratio")

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """Other patches in every image; see `Corruption.mask`."""
        _require_positions(shape, positions)
        rows, columns = _patches(shape[2:], self.patch)
        count = round(self.ratio * rows * columns)
        order = _hashes(seed, positions, rows * columns).argsort(axis=1, kind="stable")
        hidden = np.zeros(order.shape, dtype=bool)
        np.put_along_axis(hidden, order[:, :count], values=True, axis=1)
        coarse = torch.from_numpy(hidden).to(positions.device).view(-1, 1, rows, columns)
        return require_partial(coarse.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3))


@dataclass(frozen=True)
class MaskUnion:
    """Hide what any of several parts hides.

    Parts with the same seed that draw at random draw alike; give `RandomMask` other patch sizes, or use one.

    Raises:
        SettingError: There is no part.
    """

    parts: tuple[Corruption, ...]

    def __post_init__(self) -> None:
        """Check that there is a part."""
        if not self.parts:
            raise SettingError("parts is empty, so nothing would be hidden; give a corruption or more")

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """Hidden by one part at least; see `Corruption.mask`."""
        masks = [part.mask(shape, seed, positions) for part in self.parts]
        return require_partial(torch.stack(masks).any(0))


@dataclass(frozen=True)
class PatchAligned:
    """Hide every patch of which a part hides a pixel, for models that read whole patches.

    Args:
        part: What is to be hidden at least.
        patch: Height and width of a patch in pixels.

    Raises:
        SettingError: `patch` is no whole number above 0.
    """

    part: Corruption
    patch: int

    def __post_init__(self) -> None:
        """Check the patch size."""
        require_whole(self, "patch")

    def mask(self, shape: Shape, seed: int, positions: Tensor) -> Tensor:
        """Whole patches; see `Corruption.mask`."""
        coarse = _pooled(self.part.mask(shape, seed, positions), self.patch).any(-1)[:, None]
        return require_partial(coarse.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3))


def hidden_patches(mask: Tensor, patch: int) -> Tensor:
    """Which patches a mask hides, row by row as a vision transformer numbers them.

    Args:
        mask: (batch, 1, height, width) bool.
        patch: Height and width of a patch in pixels.

    Returns:
        (batch, patches) bool.

    Raises:
        CorruptionError: A patch is hidden in part; `PatchAligned` makes it whole.
        ShapeError: The images do not divide into patches.
    """
    pooled = _pooled(mask, patch)
    if bool((pooled.any(-1) != pooled.all(-1)).any()):
        raise CorruptionError(
            f"the mask hides parts of patches of {patch} pixels, and the model reads whole ones; use "
            f"PatchAligned(corruption, patch={patch})"
        )
    return pooled.any(-1).flatten(1)


def require_partial(mask: Tensor) -> Tensor:
    """The mask itself; raise a CorruptionError where it hides all of an image, or nothing."""
    hidden = mask.flatten(1).sum(1)
    height, width = mask.shape[2:]
    for count, words, remedy in ((0, "nothing", "larger"), (height * width, "everything", "smaller")):
        found = int((hidden == count).sum())
        if found:
            raise CorruptionError(
                f"the mask hides {words} in {found} of {len(mask)} images of {height} x {width} pixels, so there is "
                f"nothing to {'fill in' if count == 0 else 'go by'}; make the hidden part {remedy}, or random patches "
                "smaller"
            )
    return mask


def _middle(length: int, share: float) -> slice:
    size = round(share * length)
    return slice((length - size) // 2, (length - size) // 2 + size)


def _everywhere(hidden: Tensor, shape: Shape, positions: Tensor) -> Tensor:
    """One (height, width) mask for all images."""
    _require_positions(shape, positions)
    return require_partial(hidden.to(positions.device).expand(shape[0], 1, *shape[2:]).clone())


def _require_positions(shape: Shape, positions: Tensor) -> None:
    if positions.shape != shape[:1]:
        raise ShapeError(f"there are {shape[0]} images and positions of shape {tuple(positions.shape)}; give one each")


def _patches(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    if any(length % patch for length in size):
        raise ShapeError(
            f"images of {size[0]} x {size[1]} pixels do not divide into patches of {patch}; choose a patch that "
            "divides both, or resize the images"
        )
    return size[0] // patch, size[1] // patch


def _pooled(mask: Tensor, patch: int) -> Tensor:
    """(batch, rows, columns, pixels of a patch)."""
    rows, columns = _patches(cast("tuple[int, int]", tuple(mask.shape[2:])), patch)
    return mask.view(-1, rows, patch, columns, patch).transpose(2, 3).flatten(3)


def _hashes(seed: int, positions: Tensor, count: int) -> NDArray[np.uint64]:
    """(batch, count) numbers that pass for random. Source of the mixing: Steele, Lea and Flood 2014 (SplitMix64)."""
    places = positions.cpu().numpy().astype(np.uint64)
    state = _mixed(_mixed(np.array([seed % 2**64], dtype=np.uint64)) + places)
    step = np.uint64(0x9E3779B97F4A7C15)
    return _mixed(state[:, None] + step * np.arange(1, count + 1, dtype=np.uint64))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
