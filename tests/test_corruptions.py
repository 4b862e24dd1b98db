"""What is hidden of an image: where, how much, and as a function of seed and position alone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge.corruptions import (
    CentreCrop,
    Corruption,
    HalfImage,
    MaskUnion,
    PatchAligned,
    RandomMask,
    Uncrop,
    hidden_patches,
    require_partial,
)
from expunge.errors import CorruptionError, SettingError, ShapeError

ALL = {
    "centre crop": CentreCrop(0.5),
    "uncrop": Uncrop.all_around(0.25),
    "half": HalfImage("top"),
    "random": RandomMask(2, 0.5),
    "union": MaskUnion((RandomMask(2, 0.25), HalfImage("left"))),
    "aligned": PatchAligned(CentreCrop(0.4), 2),
}


def mask(part: Corruption, count: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    return part.mask((count, 3, height, width), seed, torch.arange(count))


def rows(part: Corruption, height: int = 4, width: int = 4) -> list[str]:
    return ["".join("#" if hidden else "." for hidden in row) for row in mask(part, 1, height, width)[0, 0].tolist()]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (CentreCrop(0.5), ["....", ".##.", ".##.", "...."]),
        (Uncrop.all_around(0.25), ["####", "#..#", "#..#", "####"]),
        (Uncrop(left=0.5), ["##.."] * 4),
        (Uncrop(right=0.25, bottom=0.5), ["...#", "...#", "####", "####"]),
        (HalfImage("left"), ["##.."] * 4),
        (HalfImage("right"), ["..##"] * 4),
        (HalfImage("top"), ["####", "####", "....", "...."]),
        (HalfImage("bottom"), ["....", "....", "####", "####"]),
        (MaskUnion((HalfImage("left"), Uncrop(top=0.25))), ["####", "##..", "##..", "##.."]),
        (PatchAligned(Uncrop(left=0.25), 2), ["##.."] * 4),
    ],
)
def test_what_is_hidden(part: Corruption, expected: list[str]) -> None:
    assert rows(part) == expected


def test_height_and_width_may_differ_and_odd_halves_are_the_smaller_part() -> None:
    assert rows(CentreCrop(0.5), 4, 6) == ["......", ".###..", ".###..", "......"]
    assert rows(HalfImage("right"), 2, 5) == ["...##"] * 2
    assert rows(HalfImage("left"), 2, 5) == ["##..."] * 2
    assert mask(RandomMask(3, 0.5), 2, 6, 12).shape == (2, 1, 6, 12)


@pytest.mark.parametrize("name", ALL)
def test_a_mask_depends_on_seed_and_position_alone(name: str) -> None:
    part, positions = ALL[name], torch.arange(40)
    whole = part.mask((40, 3, 8, 8), 5, positions)
    assert whole.dtype == torch.bool
    assert whole.shape == (40, 1, 8, 8)
    chosen = torch.tensor([31, 2, 2, 17])
    assert torch.equal(part.mask((4, 1, 8, 8), 5, chosen), whole[chosen])
    assert torch.equal(part.mask((40, 3, 8, 8), 5, positions), whole)


def test_random_masks_hide_equally_many_patches_and_differ_by_seed_and_position() -> None:
    first, second = mask(RandomMask(2, 0.3), 200, seed=1), mask(RandomMask(2, 0.3), 200, seed=2)
    assert set(hidden_patches(first, 2).sum(1).tolist()) == {5}  # of 16, the nearest to 4.8
    assert len({bytes(row.numpy().tobytes()) for row in torch.cat([first, second])}) > 350  # of C(16, 5) = 4,368


def test_random_patches_are_hidden_equally_often_and_independently() -> None:
    hidden = hidden_patches(RandomMask(1, 0.25).mask((8000, 1, 4, 4), 3, torch.arange(8000)), 1).double()
    share, error = hidden.mean(0), np.sqrt(0.25 * 0.75 / 8000)
    assert float((share - 0.25).abs().max()) < 4.5 * error  # 16 patches
    # Of 16 patches 4 are drawn without replacement, so any two of them correlate by -1/15.
    correlation = torch.corrcoef(hidden.T)[~torch.eye(16, dtype=torch.bool)]
    assert float((correlation + 1 / 15).abs().max()) < 5 / np.sqrt(8000)
    neighbours = torch.corrcoef(torch.stack([hidden[:-1].flatten(), hidden[1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 5 / np.sqrt(8000 * 12)


def test_patches_are_numbered_row_by_row() -> None:
    assert hidden_patches(mask(HalfImage("top"), 1), 4).tolist() == [[True, True, False, False]]
    assert hidden_patches(mask(HalfImage("left"), 1), 4).tolist() == [[True, False, True, False]]
    with pytest.raises(CorruptionError, match=r"parts of patches of 4 pixels.*PatchAligned\(corruption, patch=4\)"):
        hidden_patches(mask(CentreCrop(0.25)), 4)
    with pytest.raises(ShapeError, match="8 x 8 pixels do not divide into patches of 3"):
        hidden_patches(mask(CentreCrop(0.5)), 3)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (CentreCrop(0.01), "hides nothing in 3 of 3 images of 8 x 8 pixels"),
        (CentreCrop(0.99), "hides everything in 3 of 3 images"),
        (Uncrop(left=0.01), "hides nothing"),
        (Uncrop(left=0.5, right=0.49), "hides everything"),
        (RandomMask(4, 0.05), "hides nothing .* make the hidden part larger, or random patches smaller"),
        (RandomMask(4, 0.95), "hides everything"),
        (MaskUnion((HalfImage("left"), HalfImage("right"))), "hides everything"),
        (PatchAligned(CentreCrop(0.5), 4), "hides everything"),
    ],
)
def test_all_or_nothing_is_refused(part: Corruption, words: str) -> None:
    with pytest.raises(CorruptionError, match=words):
        mask(part)


def test_single_images_without_a_hidden_pixel_are_counted() -> None:
    hidden = torch.zeros(4, 1, 2, 2, dtype=torch.bool)
    hidden[1:3, 0, 0, 0] = True
    with pytest.raises(CorruptionError, match="hides nothing in 2 of 4 images of 2 x 2 pixels"):
        require_partial(hidden)


def test_positions_must_match_the_images() -> None:
    for part in ALL.values():
        with pytest.raises(ShapeError, match=r"3 images and positions of shape \(2,\)"):
            part.mask((3, 1, 8, 8), 0, torch.arange(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CentreCrop(0), "share must lie between 0 and 1, not 0"),
        (lambda: CentreCrop(1), "share must lie between 0 and 1"),
        (lambda: RandomMask(0), "patch must be a whole number of at least 1"),
        (lambda: RandomMask(2, 1), "ratio must lie between 0 and 1"),
        (lambda: Uncrop(), "all 0"),
        (lambda: Uncrop(left=-0.1), "left must be at least 0"),
        (lambda: Uncrop.all_around(0.5), "left and right must be below 1 together, not 1.0"),
        (lambda: Uncrop(top=0.9, bottom=0.2), "top and bottom must be below 1 together"),
        (lambda: HalfImage("middle"), "side must be one of 'left', 'right', 'top', 'bottom', not 'middle'"),  # pyright: ignore
        (lambda: MaskUnion(()), "parts is empty"),
        (lambda: PatchAligned(HalfImage(), 0), "patch must be a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(make: type, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        make()
