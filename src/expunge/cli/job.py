"""What a job file says: model, data, what to forget, by which method, how to audit, where to write."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from expunge.audit.choosing import ExecutorName
from expunge.cli.sections import Reference, Section, exactly_one
from expunge.cli.source_sections import DataSection
from expunge.cli.task_sections import CausalLMSection, ImageToImageSection, TaskSection
from expunge.storage import write_bytes
from expunge.training import Algorithm, Schedule
from expunge.unlearning import KEY_FILE

JOB_FILE = "job.yaml"


class ModelSection(Section):
    """Where the trained model comes from: `pretrained` is a Hugging Face classifier, `hf` a model of another kind.

    For masked tokens, `hf` is the VQ model, and `options` and `weights` are those of the transformer over its tokens.
    """

    network: Literal["mlp", "small-cnn", "all-cnn", "resnet9", "resnet18"] | None = None
    options: dict[str, Any] | None = None
    pretrained: str | None = None
    hf: str | None = None
    build: Reference | None = None
    weights: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        exactly_one(self, "network", "pretrained", "hf", "build")
        of_parts = self.hf is not None and self.weights is not None
        if self.options is not None and self.network is None and not of_parts:
            raise ValueError("options belong to a network; remove them, or name a network")
        if self.network is not None and self.weights is None:
            raise ValueError("a network needs weights: the safetensors file with its trained state")
        if (self.pretrained or self.hf) is not None and self.weights is not None and self.options is None:
            raise ValueError("a pretrained model brings its own weights; remove `weights`")
        return self


class ForgetSection(Section):
    """Which part of the training data is to be forgotten."""

    classes: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    indices_file: Path | None = None
    column: str | int | None = None
    values: tuple[str | int | float | bool, ...] | None = None
    values_file: Path | None = None
    where: Reference | None = None
    text: str | tuple[str, ...] | None = None
    near_duplicates: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        exactly_one(self, "classes", "indices", "indices_file", "column", "where", "text")
        if self.column is not None:
            exactly_one(self, "values", "values_file")
        elif self.values is not None or self.values_file is not None:
            raise ValueError("values belong to a column; name the column that holds them")
        return self


class MethodSection(Section):
    """How to forget: a name from `expunge methods`, perhaps a preset, and settings of the method.

    The name alone may stand in its place. `auto` chooses a method; its settings are `budget`, `oracles` and `rates`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    preset: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class RecipeSection(Section):
    """How such a model is trained: from scratch, or a language model from the weights of `base`."""

    python: Reference | None = None
    base: str | None = None
    epochs: PositiveFloat = 10
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-3
    algorithm: Algorithm = Algorithm.ADAM
    schedule: Schedule = Schedule.ONE_CYCLE
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.python is not None and len(self.model_fields_set) > 1:
            raise ValueError("a python recipe brings its own settings; remove the others")
        return self


class AuditSection(Section):
    """How to audit: against how many models, trained how, and broken down by which columns of the holdout.

    `network` is a function that returns the feature network for measures of images.

    Further settings are those of `expunge.audit.AuditSettings`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    oracles: int = Field(default=5, ge=2)
    shadows: int = Field(default=0, ge=0)
    subgroups: tuple[str | int, ...] = ()
    network: Reference | None = None
    executor: ExecutorName = "auto"


class ExecutionSection(Section):
    """How computations run; see `expunge.Execution`."""

    device: Literal["cpu"] | None = None
    precision: Literal["no", "fp16", "bf16"] = "no"
    channels_last: bool = False
    micro_batch_size: PositiveInt | None = None
    gradient_checkpointing: bool = False
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
    state: Path | None = None
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
        _check_kind(self)
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


def _check_kind(job: Job) -> None:
    """Raise a ValueError where sections speak of different kinds of task."""
    kind = job.task.kind
    classes, text, images = kind == "classification", kind == "causal-lm", kind == "image-to-image"
    recipe, audit = job.recipe, job.audit
    only = [  # the key, whether this kind of task may have it, and what it belongs to
        ("model.hf", job.model.hf, not classes, "text or images; give the task `kind: causal-lm` or `image-to-image`"),
        ("forget.text", job.forget.text, text, "text; give the task `kind: causal-lm`"),
        ("recipe.base", recipe and recipe.base, text, "text; give the task `kind: causal-lm`"),
        ("model.pretrained", job.model.pretrained, classes, f"a classifier, and the task is `{kind}`"),
        ("model.network", job.model.network, classes, f"a classifier, and the task is `{kind}`"),
        ("forget.classes", job.forget.classes, not text, f"a classifier, and the task is `{kind}`"),
        ("audit.network", audit and audit.network, images, "images; give the task `kind: image-to-image`"),
    ]
    for key, value, allowed, belongs in only:
        if value is not None and not allowed:
            raise ValueError(f"{key} belongs to {belongs}")
    if isinstance(job.task, CausalLMSection) and job.task.tokenizer is None and job.model.hf is None:
        raise ValueError("a language model from model.build brings no tokenizer; name one as task.tokenizer")
    tokens = isinstance(job.task, ImageToImageSection) and job.task.family == "masked-tokens"
    if tokens and job.model.hf is not None and (job.model.options is None or job.model.weights is None):
        raise ValueError(
            "a model of masked tokens needs model.options and model.weights beside the VQ model in model.hf"
        )
    if job.model.hf is not None and job.model.weights is not None and not tokens:
        raise ValueError("a pretrained model brings its own weights; remove model.weights and model.options")
