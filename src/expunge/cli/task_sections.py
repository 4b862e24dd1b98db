"""Kinds of task in a job file: one section type a kind, found by its key `kind`."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Discriminator, Field, Tag

from expunge.cli.sections import Section


class ClassificationSection(Section):
    """Which of several classes; see `expunge.Classification`."""

    kind: Literal["classification"] = "classification"
    classes: int
    names: tuple[str, ...] | None = None
    inputs: str | int | None = None
    labels: str | int | None = None
    head: str | None = None


class CausalLMSection(Section):
    """Text, token by token; see `expunge.CausalLM`.

    The tokenizer is by default that of `model.hf`; `pad_token` names one of its tokens where it has none for padding;
    `too_long` says what becomes of examples that the model cannot read as a whole.
    """

    kind: Literal["causal-lm"]
    tokenizer: str | None = None
    pad_token: str | None = None
    too_long: Literal["refuse", "drop"] = "refuse"
    context: int | None = None
    template: str | None = None
    group: str | None = None
    places: int | None = None
    buckets: int | None = None
    least_likely: float | None = None


class ImageToImageSection(Section):
    """Restore what is hidden of an image; see `expunge.ImageToImage`.

    `corruption` and `training` are mappings with a `kind` and its settings; see `expunge.corruptions`. `pictures` says
    how pictures of folders and Hugging Face datasets become tensors; see `expunge.pictures.Fitting`.
    """

    kind: Literal["image-to-image"]
    family: Literal["masked-autoencoder", "masked-tokens", "inpainting-diffusion"]
    corruption: dict[str, Any]
    training: dict[str, Any] | None = None
    family_settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    pictures: dict[str, Any] = Field(default_factory=dict[str, Any])
    seed: int = Field(default=0, ge=0)
    names: tuple[str, ...] | None = None
    image: str | int | None = None
    label: str | int | None = None
    decoder_steps: int | None = None
    decoder_learning_rate: float | None = None
    decoder_batch_size: int | None = None


TASKS: dict[str, type[Section]] = {
    "classification": ClassificationSection,
    "causal-lm": CausalLMSection,
    "image-to-image": ImageToImageSection,
}


def _kind_of_task(value: object) -> str | None:
    if not isinstance(value, BaseModel | dict):
        return None
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else dict(value)
    kind = fields.get("kind", "classification")
    return kind if isinstance(kind, str) and kind in TASKS else None


TaskSection = Annotated[
    Annotated[ClassificationSection, Tag("classification")]
    | Annotated[CausalLMSection, Tag("causal-lm")]
    | Annotated[ImageToImageSection, Tag("image-to-image")],
    Discriminator(
        _kind_of_task,
        custom_error_type="task",
        custom_error_message=f"give a mapping whose `kind` is one of {', '.join(TASKS)}",
    ),
]
