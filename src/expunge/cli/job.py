"""What a job file says: model, data, what to forget, by which method, how to audit, where to write."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from expunge.audit.choosing import ExecutorName
from expunge.storage import write_bytes
from expunge.training import Algorithm, Schedule
from expunge.unlearning import KEY_FILE

JOB_FILE = "job.yaml"

Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""A function of the user's, as `package.module:function`."""


class Section(BaseModel):
    """A part of a job; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Where the trained model comes from."""

    network: Literal["mlp", "small-cnn", "all-cnn", "resnet9", "resnet18"] | None = None
    options: dict[str, Any] | None = None
    pretrained: str | None = None
    build: Reference | None = None
    weights: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _exactly_one(self, "network", "pretrained", "build")
        if self.options is not None and self.network is None:
            raise ValueError("options belong to a network; remove them, or name a network")
        if self.network is not None and self.weights is None:
            raise ValueError("a network needs weights: the safetensors file with its trained state")
        if self.pretrained is not None and self.weights is not None:
            raise ValueError("a pretrained model brings its own weights; remove `weights`")
        return self


class NpzSource(Section):
    """Arrays of a numpy archive."""

    npz: Path
    inputs: str = "x"
    labels: str = "y"
    scale: PositiveFloat = 1.0
    channels_last: bool = False


class HuggingFaceSource(Section):
    """A Hugging Face dataset on the hub or on disk."""

    huggingface: str
    configuration: str | None = None
    revision: str | None = None
    split: str = "train"


class ImagesSource(Section):
    """A folder with a sub-folder of images for each class."""

    images: Path
    split: str = "train"


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


SOURCES: dict[str, type[Section]] = {
    "npz": NpzSource,
    "huggingface": HuggingFaceSource,
    "images": ImagesSource,
    "csv": CsvSource,
    "parquet": ParquetSource,
    "python": PythonSource,
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
    | Annotated[PythonSource, Tag("python")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message=f"give a mapping with exactly one of {', '.join(SOURCES)}",
    ),
]


class DataSection(Section):
    """The training data, and data that were never trained on."""

    train: SourceSection
    holdout: SourceSection | None = None


class TaskSection(Section):
    """What the model is for; see `expunge.Classification`."""

    classes: int
    names: tuple[str, ...] | None = None
    inputs: str | int | None = None
    labels: str | int | None = None
    head: str | None = None


class ForgetSection(Section):
    """Which part of the training data is to be forgotten."""

    classes: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    indices_file: Path | None = None
    column: str | int | None = None
    values: tuple[str | int | float | bool, ...] | None = None
    values_file: Path | None = None
    where: Reference | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        _exactly_one(self, "classes", "indices", "indices_file", "column", "where")
        if self.column is not None:
            _exactly_one(self, "values", "values_file")
        elif self.values is not None or self.values_file is not None:
            raise ValueError("values belong to a column; name the column that holds them")
        return self


class MethodSection(Section):
    """How to forget: a name from `expunge methods`, perhaps a preset, and settings of the method."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    preset: str | None = None


class RecipeSection(Section):
    """How such a model is trained from scratch."""

    python: Reference | None = None
    epochs: PositiveFloat = 10
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3
    algorithm: Algorithm = Algorithm.ADAM
    schedule: Schedule = Schedule.ONE_CYCLE
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.python is not None and len(self.model_fields_set) > 1:
            raise ValueError("a python recipe brings its own settings; remove the others")
        return self


class AuditSection(Section):
    """How to audit: against how many models, trained how, and broken down by which columns of the holdout.

    Further settings are those of `expunge.audit.AuditSettings`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    oracles: int = Field(default=5, ge=2)
    shadows: int = Field(default=0, ge=0)
    subgroups: tuple[str | int, ...] = ()
    executor: ExecutorName = "auto"


class ExecutionSection(Section):
    """How computations run; see `expunge.Execution`."""

    device: Literal["cpu"] | None = None
    precision: Literal["no", "fp16", "bf16"] = "no"
    channels_last: bool = False
    micro_batch_size: PositiveInt | None = None
    workers: int = Field(default=0, ge=0)
    threads: PositiveInt | None = None
    checkpoint_seconds: PositiveFloat = 30.0

    @field_validator("precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value


class Job(Section):
    """A whole job file; relative paths and modules are looked for from `base`, by default the file's own folder."""

    model: ModelSection
    data: DataSection
    task: TaskSection
    forget: ForgetSection
    method: MethodSection
    recipe: RecipeSection | None = None
    audit: AuditSection | None = None
    execution: ExecutionSection = ExecutionSection()
    seed: int = Field(default=0, ge=0)
    output: Path | None = None
    key: Path | None = None
    base: Path = Path()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.audit is not None and self.recipe is None:
            raise ValueError("an audit retrains oracles and needs a recipe; add `recipe`, or remove `audit`")
        if self.recipe is not None and self.recipe.python is None and self.model.build and not self.model.weights:
            raise ValueError(
                "the recipe would start from what model.build returns, which is trained already; let it return an "
                "untrained network and name its `weights`, or give recipe.python"
            )
        return self

    def path(self, relative: str | Path) -> Path:
        """A path of the job as seen from here."""
        return self.base / Path(relative).expanduser()

    def key_in(self, folder: Path) -> Path:
        """The file of the key of a run in `folder`."""
        return folder / KEY_FILE if self.key is None else self.path(self.key)

    def save(self, folder: Path) -> None:
        """Write `job.yaml`, readable by the owner only because it may say who was forgotten."""
        content = self.model_dump(mode="json", exclude_unset=True) | {"base": str(self.base)}
        write_bytes(folder / JOB_FILE, yaml.safe_dump(content, sort_keys=False).encode(), private=True)


def _exactly_one(section: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(names)}, not {' and '.join(given) or 'none'}")
