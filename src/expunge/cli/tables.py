"""CSV and Parquet tables as tensors, with the other columns at hand for choosing rows.

Tables are read without a cache: copies of personal data would stay behind in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from expunge.cli.settings import nearest
from expunge.errors import SourceError


@dataclass(frozen=True)
class TableFile:
    """A CSV or Parquet file.

    Args:
        path: Where it is.
        kind: Its format.
        key: Where it is named in the job, for error messages.
    """

    path: Path
    kind: Literal["csv", "parquet"]
    key: str

    def frame(self) -> pd.DataFrame:
        """All rows.

        Raises:
            SourceError: The file cannot be read or has no rows.
        """
        try:
            frame = pd.read_parquet(self.path) if self.kind == "parquet" else pd.read_csv(self.path)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.key}: {self.path} cannot be read as {self.kind} ({error})") from error
        if frame.empty:
            raise SourceError(f"{self.key}: {self.path} has no rows")
        return frame

    def column(self, name: str) -> NDArray[np.str_]:
        """A column as text; read again as text, so that `007` is not taken for the number 7."""
        if self.kind == "parquet":
            frame = pd.read_parquet(self.path, columns=[name], dtype_backend="pyarrow")
        else:
            frame = pd.read_csv(self.path, usecols=[name], dtype=str, keep_default_na=False)
        return np.asarray([str(value) for value in frame[name].tolist()])


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        file: The file.
        inputs: (rows, features) float32.
        labels: (rows,) as they stand in the file.
        features: Names of the columns in `inputs`.
        columns: Names of all columns.
    """

    file: TableFile
    inputs: NDArray[np.float32]
    labels: NDArray[Any]
    features: tuple[str, ...]
    columns: tuple[str, ...]

    def column(self, name: str | int) -> NDArray[np.str_]:
        """A column as text."""
        if name not in self.columns:
            raise SourceError(f"{self.file.key}: there is no column {name!r}{nearest(str(name), self.columns)}")
        return self.file.column(str(name))


def read_table(file: TableFile, label: str, features: Sequence[str] | None, reserved: str | int | None) -> Table:
    """Read a table and stack its feature columns.

    Args:
        file: Where it is.
        label: Column of the labels.
        features: Columns of the inputs; by default all numeric ones but the label.
        reserved: A column that identifies the data to forget and must not become a feature by default.

    Raises:
        SourceError: The file cannot be read, a column is missing, or a feature is not numeric or not finite.
    """
    frame, key = file.frame(), file.key
    columns = tuple(str(name) for name in frame.columns)
    for name in (label, *(features or ())):
        if name not in columns:
            raise SourceError(f"{key}: {file.path} has no column {name!r}{nearest(name, columns)}")
    absent = int(frame[label].isna().sum())
    if absent:
        raise SourceError(f"{key}.label: {absent} of {len(frame)} rows have no label; complete or drop them")
    numeric = [name for name in columns if name != label and pd.api.types.is_numeric_dtype(frame[name].dtype)]
    chosen = _chosen_features(file, numeric, features, reserved)
    inputs = frame[chosen].to_numpy(dtype=np.float32, na_value=np.nan)
    _require_finite(inputs, chosen, key)
    return Table(file, inputs, frame[label].to_numpy(), tuple(chosen), columns)


def _chosen_features(
    file: TableFile, numeric: list[str], features: Sequence[str] | None, reserved: str | int | None
) -> list[str]:
    key = file.key
    if features is None:
        if reserved in numeric:
            raise SourceError(
                f"{key}: the column {reserved!r} chooses what to forget, but being numeric it would also become a "
                f"feature; list the columns that the model was trained on in {key}.features"
            )
        if not numeric:
            raise SourceError(f"{key}: {file.path} has no numeric column besides the label; a model needs numbers")
        return numeric
    text = [name for name in features if name not in numeric]
    if text:
        raise SourceError(
            f"{key}.features: {', '.join(text)}: not a numeric column; encode it as numbers or leave it out"
        )
    return list(features)


def _require_finite(inputs: NDArray[np.float32], features: Sequence[str], key: str) -> None:
    bad = ~np.isfinite(inputs)
    if bad.any():
        counts = cast("list[int]", bad.sum(0).tolist())
        named = ", ".join(f"{name} ({count})" for name, count in zip(features, counts, strict=True) if count)
        raise SourceError(
            f"{key}: {int(bad.any(1).sum())} of {len(inputs)} rows have features that are missing or infinite: "
            f"{named}; fill them in as in training, or drop the rows"
        )
