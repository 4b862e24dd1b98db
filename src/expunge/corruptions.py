"""Which part of an image is hidden from a model that is to restore it."""

from typing import Protocol

from torch import Tensor


class Corruption(Protocol):
    """Hides a part of every image; what it hides is a function of the seed and of the example alone."""

    def mask(self, shape: tuple[int, int, int, int], seed: int, positions: Tensor) -> Tensor:
        """Which pixels are hidden.

        Args:
            shape: (batch, channels, height, width) of the images.
            seed: Of whatever is random in it.
            positions: (batch,) int64, one number an example, the same whatever batch it comes in.

        Returns:
            (batch, 1, height, width) bool, True where hidden.
        """
        ...
