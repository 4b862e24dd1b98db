"""Pictures become tensors of the size, and by the rule, that was stated."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.errors import SettingError
from expunge.pictures import Fitting


def stripes(height: int, width: int) -> Image.Image:
    """Columns that grow brighter to the right."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.tile(row, (height, 1)))


def test_each_rule_shows_what_it_says() -> None:
    wide = stripes(10, 30)
    crop = Fitting(10, "crop", 1).tensor(wide)
    assert torch.equal(crop, torch.from_numpy(np.asarray(wide)[None, :, 10:20] / np.float32(255)))
    stretched = Fitting(10, "stretch", 1, "box").tensor(wide)
    expected = np.asarray(wide, dtype=np.float64).reshape(10, 10, 3).mean(2) / 255
    np.testing.assert_allclose(stretched[0].numpy(), expected, atol=0.51 / 255)
    padded = Fitting(30, "pad", 1).tensor(wide)
    assert torch.equal(padded[0, 10:20], torch.from_numpy(np.asarray(wide) / np.float32(255)))
    assert float(padded[0, :10].max()) == float(padded[0, 20:].max()) == 0


@pytest.mark.parametrize("rule", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("resampling", ["bicubic", "bilinear", "box", "nearest"])
def test_every_rule_gives_the_size_and_the_range(rule: Any, resampling: Any) -> None:
    found = Fitting((6, 9), rule, 3, resampling).tensor(stripes(13, 31))
    assert found.shape == (3, 6, 9)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert torch.equal(Fitting((13, 31), rule, 1, resampling).tensor(stripes(13, 31)), Fitting(channels=1).tensor(
        stripes(13, 31)
    ))  # fmt: skip


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_become_grey_or_colour(mode: str) -> None:
    coloured = Image.new("RGB", (3, 2), (255, 0, 0))
    given = coloured.convert("L").convert("LA") if mode == "LA" else coloured.convert(mode)
    assert Fitting().tensor(given).shape == (3, 2, 3)
    grey = Fitting(channels=1).tensor(given)
    assert grey.shape == (1, 2, 3)
    if mode in {"L", "LA", "RGB", "RGBA", "P"}:
        assert float(grey[0, 0, 0]) == pytest.approx(0.299, abs=0.003)  # ITU-R 601-2


def test_transparent_parts_are_black_whatever_lies_beneath() -> None:
    pixels = np.full((2, 2, 4), 200, dtype=np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    found = Fitting().tensor(Image.fromarray(pixels))
    assert float(found[:, 0].max()) == 0
    assert torch.allclose(found[:, 1], torch.tensor(200 / 255))


def test_pictures_are_turned_as_their_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by a quarter clockwise to see it upright
    buffer = io.BytesIO()
    stripes(8, 16).save(buffer, "png", exif=exif)
    found = Fitting(channels=1).tensor(Image.open(buffer))
    assert found.shape == (1, 16, 8)
    assert bool((found[0, 1:] >= found[0, :-1]).all())


def test_a_large_jpeg_file_is_decoded_coarsely_to_nearly_the_same_picture() -> None:
    low = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    large = Image.fromarray(low).resize((1280, 960), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "jpeg", quality=95)
    file = Image.open(buffer)
    fast = Fitting((48, 64)).tensor(file)
    assert file.size[0] < 1280  # what the file was decoded to
    whole = Image.open(buffer)
    whole.load()  # too late for a coarser scale
    slow = Fitting((48, 64)).tensor(whole)
    assert float((fast - slow).abs().max()) < 0.03


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_more_than_eight_bits_are_refused(mode: str) -> None:
    for read in (Fitting(2).tensor, Fitting(2).examine):
        with pytest.raises(ValueError, match=f"pixels of mode {mode} have more than 8 bits"):
            read(Image.new(mode, (4, 4)))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_examining_tells_the_size_that_comes_out(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stripes(80, 160).save(buffer, form, exif=exif)
    for fitting in (Fitting(), Fitting((5, 7))):
        found = fitting.examine(Image.open(buffer))
        assert found == fitting.tensor(Image.open(buffer)).shape[1:]
    content = buffer.getvalue()
    for part in (0.5, 0.9):
        with pytest.raises(OSError, match=r"truncated|broken|unrecognized"):
            Fitting().examine(Image.open(io.BytesIO(content[: int(part * len(content))])))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 0}, "size must be one or two whole numbers"),
        ({"size": (4, 0)}, "size must be"),
        ({"size": (4, 4, 4)}, "size must be"),
        ({"size": 4.0}, "not 4.0"),
        ({"size": True}, "not True"),
        ({"rule": "squash"}, "rule must be one of 'crop', 'stretch', 'pad', not 'squash'"),
        ({"channels": 4}, "channels must be one of 1, 3"),
        ({"resampling": "sinc"}, "resampling must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Fitting(**settings)
