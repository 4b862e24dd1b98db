"""What evidence holds of restored pictures: figures of whole sets, and a few pictures side by side."""

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from expunge.audit.intervals import Interval, Part
from expunge.errors import SavedModelError

FrechetVariant = Literal["plain", "shrunk", "projected"]

Shown = Literal["holdout", "forget", "retain"]

FORGOTTEN_KIND = "holdout, forgotten kind"
FORGOTTEN = ("forget", FORGOTTEN_KIND)
"""Names of the sets of what is to be forgotten."""


class ImageMeasures(Part):
    """Figures of a set of pictures that a model restored, beside the true ones.

    Attributes:
        pictures: How many.
        reconstruction_error: Mean squared error over hidden pixels, averaged over pictures.
        peak_signal_to_noise: In decibels, likewise.
        structural_similarity: Of the surroundings of hidden pixels, likewise; None for pictures under 6 pixels.
        feature_network: The name of the network that the figures below rest on; None where there is none.
        embedding_similarity: Mean cosine similarity of the features of a restored picture and of its true one.
        frechet_distance: Between the features of all restored and of all true pictures.
        frechet_variant: Which; see `frechet_distance`.
        inception_score: Of the restored pictures; None where the network has no classes, or pictures are too few.
        inception_classes: How many classes that network has, which is the most that the score can be.
    """

    pictures: int
    reconstruction_error: float
    peak_signal_to_noise: float
    structural_similarity: float | None
    feature_network: str | None = None
    embedding_similarity: float | None = None
    frechet_distance: float | None = None
    frechet_variant: FrechetVariant | None = None
    inception_score: float | None = None
    inception_classes: int | None = None


class BesideOracles(Part):
    """One measure of a model, beside that of retrained models.

    Attributes:
        value: Of the model.
        oracles: Of each oracle.
        band: Where one more oracle would fall, with 95 % confidence; None with one oracle.
        share: (value - mean of the oracles) / mean of the oracles; 0 is like retraining.
    """

    value: float
    oracles: list[float]
    band: Interval | None
    share: float

    @property
    def inside(self) -> bool | None:
        """Whether the value could be an oracle's; None where one oracle cannot tell."""
        return None if self.band is None else self.value in self.band


class Restoration(Part):
    """How well the hidden part of a set of pictures is restored.

    Attributes:
        on: Which set.
        unlearned: By the unlearned model.
        original: By the original.
        beside: Each figure of the unlearned model by name, beside those of the oracles.
    """

    on: str
    unlearned: ImageMeasures
    original: ImageMeasures
    beside: dict[str, BesideOracles]


class EmbeddingPlaces(Part):
    """Where the features of what models restore lie in one plane (t-SNE), without the pictures.

    Attributes:
        feature_network: Whose features.
        places: By set and model, of the same pictures in the same order for each model.
    """

    feature_network: str
    places: dict[str, dict[str, list[tuple[float, float]]]]


class PictureGrid(Part):
    """A few pictures side by side, with the pixels that a page shows.

    Attributes:
        shows: Whose examples they are.
        shape: Of each column: (pictures, channels, height, width).
        columns: By heading, one byte for each value from 0 to 255, compressed by zlib and written in base64.
    """

    shows: Shown
    shape: tuple[int, int, int, int]
    columns: dict[str, str]

    @classmethod
    def of(cls, shows: Shown, columns: Mapping[str, Tensor]) -> Self:
        """Keep pictures, (pictures, channels, height, width) in [0, 1], at one byte a value."""
        count, channels, height, width = next(iter(columns.values())).shape
        return cls(
            shows=shows,
            shape=(count, channels, height, width),
            columns={name: _packed(pictures) for name, pictures in columns.items()},
        )

    def tensors(self) -> dict[str, Tensor]:
        """The pictures again: (pictures, channels, height, width) in [0, 1] by heading.

        Raises:
            SavedModelError: A column is damaged.
        """
        return {name: self._unpacked(name, text) for name, text in self.columns.items()}

    def _unpacked(self, name: str, text: str) -> Tensor:
        size = math.prod(self.shape)
        try:
            # no more than the shape says: a few bytes of a foreign file could otherwise fill the memory
            content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
        except (zlib.error, binascii.Error, ValueError) as error:
            raise SavedModelError(f"the pictures {name!r} in the evidence are damaged; audit the run again") from error
        if len(content) != size:
            raise SavedModelError(
                f"the pictures {name!r} in the evidence do not have the shape {self.shape} that stands there; audit "
                "the run again"
            )
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy()).view(self.shape).float() / 255


def _packed(pictures: Tensor) -> str:
    values = (pictures.float().cpu().clamp(0, 1) * 255).round().byte().contiguous().numpy()
    return base64.b64encode(zlib.compress(values.tobytes())).decode("ascii")
