"""How a picture becomes a tensor of a stated size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from expunge.errors import SettingError
from expunge.settings import require_one_of

Rule = Literal["crop", "stretch", "pad"]
Resampling = Literal["bicubic", "bilinear", "box", "nearest"]

_ON_ITS_SIDE = 5  # from this EXIF orientation on, width and height are swapped
_REDUCING_GAP = 2  # a JPEG file is decoded at a coarser scale that is still twice the size wanted


@dataclass(frozen=True)
class Fitting:
    """How pictures are brought to one size and one number of channels.

    Pictures are turned as their EXIF orientation says; transparent parts become black. JPEG files are decoded at the
    coarsest scale that is at least twice as large as needed.

    Args:
        size: Height and width in pixels, or one number for both; None leaves pictures as they are.
        rule: `crop`: scaled until the picture just covers the size, and cut at its centre. `stretch`: scaled along each
            axis by itself. `pad`: scaled until it just fits, with black around it.
        channels: 1 for brightness (ITU-R 601-2), 3 for red, green and blue.
        resampling: The filter; all but `nearest` average over what becomes one pixel.

    Raises:
        SettingError: A setting is none of these.
    """

    size: int | tuple[int, int] | None = None
    rule: Rule = "crop"
    channels: int = 3
    resampling: Resampling = "bicubic"

    def __post_init__(self) -> None:
        """Check all settings."""
        sides = self.size if isinstance(self.size, tuple) else (self.size,) * 2
        if len(sides) != 2 or not all(side is None or (type(side) is int and side > 0) for side in sides):
            raise SettingError(f"size must be one or two whole numbers of at least 1, or None, not {self.size!r}")
        require_one_of(self, "rule", ("crop", "stretch", "pad"))
        require_one_of(self, "channels", (1, 3))
        require_one_of(self, "resampling", ("bicubic", "bilinear", "box", "nearest"))

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the result."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def tensor(self, picture: Image.Image) -> Tensor:
        """(channels, height, width) float32 in [0, 1].

        Raises:
            ValueError: The picture has more than 8 bits a channel, which would be cut off.
            OSError: The file behind the picture is damaged.
        """
        if self.shape is not None:
            longest = _REDUCING_GAP * max(self.shape)
            picture.draft(picture.mode, (longest, longest))  # nothing happens where it is no unread JPEG file
        if picture.format is not None:  # it comes from a file
            picture = ImageOps.exif_transpose(picture)
        pixels = np.asarray(self._sized(self._coloured(picture)))
        channels_first = torch.from_numpy(pixels.copy()).view(*pixels.shape[:2], self.channels).movedim(-1, 0)
        return channels_first.float() / 255

    def examine(self, picture: Image.Image) -> tuple[int, int]:
        """Decode a picture as coarsely as its format allows, which reads all of the file and shows any damage.

        Returns:
            Height and width of what `tensor` makes of it.

        Raises:
            ValueError: The picture has more than 8 bits a channel, which would be cut off.
            OSError: The file behind the picture is damaged.
        """
        width, height = picture.size
        turned = picture.format is not None and picture.getexif().get(ExifTags.Base.Orientation, 1) >= _ON_ITS_SIDE
        picture.draft(picture.mode, (1, 1))
        self._coloured(picture)
        return self.shape or ((width, height) if turned else (height, width))

    def _coloured(self, picture: Image.Image) -> Image.Image:
        picture.load()
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"pixels of mode {picture.mode} have more than 8 bits a channel; save it with 8")
        mode = "L" if self.channels == 1 else "RGB"
        if picture.mode == mode and "transparency" not in picture.info:
            return picture
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
        return picture.convert(mode)

    def _sized(self, picture: Image.Image) -> Image.Image:
        if self.shape is None or picture.size == self.shape[::-1]:
            return picture
        size, method = (self.shape[1], self.shape[0]), Image.Resampling[self.resampling.upper()]
        if self.rule == "stretch":
            return picture.resize(size, method)
        return (ImageOps.fit if self.rule == "crop" else ImageOps.pad)(picture, size, method)
