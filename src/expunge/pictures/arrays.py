"""Pictures that lie in an array in memory, such as those of a numpy archive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from expunge.errors import ShapeError, SourceError
from expunge.pictures.dataset import Pictures, numbered
from expunge.pictures.fitting import Fitting


@dataclass(frozen=True)
class _Array:
    """(pictures, height, width) or (pictures, height, width, channels) uint8."""

    values: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.values)

    def name(self, position: int) -> str:
        return f"picture {position}"

    def open(self, position: int) -> Image.Image:
        return Image.fromarray(self.values[position])


def read_npz(
    path: str | Path,
    fitting: Fitting,
    *,
    images: str = "x",
    labels: str = "y",
    names: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Pictures:
    """Pictures in a numpy archive, kept in memory as the bytes that they are.

    Args:
        path: The archive.
        fitting: How the pictures become tensors.
        images: Its array of pictures: (pictures, height, width), or the same with 1, 3 or 4 channels before or after;
            bytes, or numbers in [0, 1], which are rounded to bytes.
        labels: Its array of classes, (pictures,): numbers or text, such as `y`, or `subject` for people.
        names: Of the classes; see `numbered`. For a holdout, those of the training data.
        columns: Further columns, each the name of an array with an entry a picture.

    Raises:
        SourceError: The archive cannot be read, or lacks an array.
        ShapeError: The array of pictures has another shape or other values.
        LabelError: A label is not among the names.
        DataError: A column has another length.
    """
    arrays = _archive(Path(path), {images, labels, *(columns or {}).values()})
    classes, known = numbered(arrays[labels], names)
    return Pictures(
        _Array(_bytes(arrays[images])),
        fitting,
        classes,
        known,
        {name: arrays[array] for name, array in (columns or {}).items()},
    )


def _archive(path: Path, wanted: set[str]) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # numpy would leave it open where the archive is damaged
            archive: object = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise SourceError(f"{path} holds a single array; save pictures and labels with numpy.savez")
            missing = wanted - set(archive.files)
            if missing:
                raise SourceError(
                    f"{path} has no array {', '.join(sorted(missing))}; it has {', '.join(archive.files)}"
                )
            return {name: archive[name] for name in wanted}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise SourceError(
            f"{path} is no readable npz file ({error}); Python objects in it are never unpickled, save plain arrays of "
            "numbers or text"
        ) from error


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    channels_last = _channels_last(values)
    if channels_last.dtype == np.uint8:
        return channels_last
    floats = np.issubdtype(channels_last.dtype, np.floating)
    if not floats or not (channels_last.min(initial=0) >= 0 and channels_last.max(initial=0) <= 1):  # also where NaN
        raise ShapeError(
            f"pictures of type {values.dtype} must lie in [0, 1], and those of 0 to 255 be uint8; convert the array"
        )
    return np.rint(channels_last * 255).astype(np.uint8)


def _channels_last(values: NDArray[Any]) -> NDArray[Any]:
    before, after = (values.ndim == 4 and values.shape[axis] in (1, 3, 4) for axis in (1, 3))
    if values.ndim != 3 and before == after:
        raise ShapeError(
            f"an array of shape {values.shape} is not told to hold pictures; give (pictures, height, width), or the "
            "same with 1, 3 or 4 channels either before or after"
        )
    values = np.moveaxis(values, 1, 3) if before else values
    return np.ascontiguousarray(values[..., 0] if values.ndim == 4 and values.shape[3] == 1 else values)
