"""Where data come from, in a job file: one section type a kind of source, found by the key it is named for."""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Discriminator, Field, PositiveFloat, Tag

from expunge.cli.sections import Reference, Section


class NpzSource(Section):
    """Arrays of a numpy archive."""

    npz: Path
    inputs: str = "x"
    labels: str = "y"
    scale: PositiveFloat = 1.0
    channels_last: bool = False


class HuggingFaceSource(Section):
    """A Hugging Face dataset on the hub or on disk; `columns` gives those of text new names."""

    huggingface: str
    configuration: str | None = None
    revision: str | None = None
    split: str = "train"
    columns: dict[str, str] | None = None


class ImagesSource(Section):
    """A folder with a sub-folder of images for each class.

    `levels` names folders between the split and a file, by which pictures may be chosen: `{person: 1}` for
    `class/person/7.jpg`.
    """

    images: Path
    split: str = "train"
    levels: dict[str, Annotated[int, Field(ge=0)]] | None = None


class CsvSource(Section):
    """Rows of a CSV file."""

    csv: Path
    label: str
    features: tuple[str, ...] | None = None


class ParquetSource(Section):
    """Rows of a Parquet file."""

    parquet: Path
    label: str
    features: tuple[str, ...] | None = None


class PythonSource(Section):
    """A function without arguments that returns a dataset."""

    python: Reference


class JsonLinesSource(Section):
    """A JSON object a line with `question` and `answer`, or `text`; `columns` renames what is called otherwise."""

    jsonl: Path
    columns: dict[str, str] | None = None


class TofuSource(Section):
    """Questions about authors who do not exist; without a folder, found under EXPUNGE_DATA_DIR."""

    tofu: Path | None
    authors: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None


class PistolSource(Section):
    """Questions about contracts; without a folder, found under EXPUNGE_DATA_DIR."""

    pistol: Path | None
    sample: Literal[1, 2] = 1
    edges: tuple[str, ...] | None = None


SOURCES: dict[str, type[Section]] = {
    "npz": NpzSource,
    "huggingface": HuggingFaceSource,
    "images": ImagesSource,
    "csv": CsvSource,
    "parquet": ParquetSource,
    "python": PythonSource,
    "jsonl": JsonLinesSource,
    "tofu": TofuSource,
    "pistol": PistolSource,
}


def _kind_of_source(value: object) -> str | None:
    if not isinstance(value, BaseModel | dict):
        return None
    keys = list(type(value).model_fields if isinstance(value, BaseModel) else cast("dict[str, Any]", value))
    kinds = [kind for kind in SOURCES if kind in keys]
    return kinds[0] if len(kinds) == 1 else None


SourceSection = Annotated[
    Annotated[NpzSource, Tag("npz")]
    | Annotated[HuggingFaceSource, Tag("huggingface")]
    | Annotated[ImagesSource, Tag("images")]
    | Annotated[CsvSource, Tag("csv")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[PythonSource, Tag("python")]
    | Annotated[JsonLinesSource, Tag("jsonl")]
    | Annotated[TofuSource, Tag("tofu")]
    | Annotated[PistolSource, Tag("pistol")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message=f"give a mapping with exactly one of {', '.join(SOURCES)}",
    ),
]


class DataSection(Section):
    """The training data, data that were never trained on, and data that stand in for training data."""

    train: SourceSection
    holdout: SourceSection | None = None
    surrogate: SourceSection | None = None
