"""What the kind of a job's task decides: how data are read, and where models come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from expunge.cli.image_models import image_model, image_task, untrained_image_model
from expunge.cli.job import Job
from expunge.cli.language import language_model, language_task, readable_examples, untrained_language_model
from expunge.cli.models import load_model, untrained
from expunge.cli.picture_sources import load_pictures, load_surrogate
from expunge.cli.settings import checked_call
from expunge.cli.sources import Source, load_source
from expunge.cli.task_sections import CausalLMSection, ClassificationSection, ImageToImageSection
from expunge.cli.text_sources import load_text
from expunge.errors import JobError
from expunge.tasks import Classification, Task


@dataclass(frozen=True)
class Data:
    """What a job's data come to.

    Attributes:
        train: What the model was trained on.
        task: What it is for.
        holdout: What was never trained on, if any.
        surrogate: What stands in for training data, if anything.
        notes: What was decided while they were read, in words.
    """

    train: Source
    task: Task
    holdout: Source | None = None
    surrogate: Source | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Kind:
    """How jobs of one kind of task are read.

    Attributes:
        data: Reads what the model was trained on and what it is for.
        model: Gives the trained model.
        untrained: Gives a function that makes what retraining starts from.
    """

    data: Callable[[Job], Data]
    model: Callable[[Job], nn.Module]
    untrained: Callable[[Job], Callable[[], nn.Module]]


def kind_of(job: Job) -> Kind:
    """How to read a job."""
    return _KINDS[type(job.task)]


def _classes(job: Job) -> Data:
    train = load_source(job.data.train, job, "data.train")
    holdout = job.data.holdout and load_source(job.data.holdout, job, "data.holdout", like=train)
    surrogate = job.data.surrogate and load_source(job.data.surrogate, job, "data.surrogate", like=train)
    return Data(train, _classification(job, train), holdout, surrogate)


def _text(job: Job) -> Data:
    sections = {"train": job.data.train, "holdout": job.data.holdout, "surrogate": job.data.surrogate}
    sources = {
        f"data.{name}": load_text(section, job, f"data.{name}")
        for name, section in sections.items()
        if section is not None
    }
    task = language_task(job)
    read, notes = readable_examples(sources, task, job)
    return Data(read["data.train"], task, read.get("data.holdout"), read.get("data.surrogate"), notes)


def _images(job: Job) -> Data:
    train = load_pictures(job.data.train, job, "data.train")
    holdout = job.data.holdout and load_pictures(job.data.holdout, job, "data.holdout", like=train)
    surrogate = job.data.surrogate and load_surrogate(job.data.surrogate, job, "data.surrogate")
    return Data(train, image_task(job, train), holdout, surrogate)


def _classification(job: Job, train: Source) -> Classification:
    section = cast(ClassificationSection, job.task)
    settings = section.model_dump(exclude_none=True, exclude={"kind"})
    named = [name for name in ("inputs", "labels") if isinstance(settings.get(name), str)]
    if named and not train.fields:
        raise JobError(
            f"task.{named[0]}: the examples of data.train have no named fields; remove it, and choose arrays or "
            "columns under data.train"
        )
    if train.names is not None and len(train.names) == section.classes:
        settings = {"names": train.names} | settings
    return checked_call(Classification, settings, "task")


_KINDS: dict[type, Kind] = {
    ClassificationSection: Kind(_classes, load_model, untrained),
    CausalLMSection: Kind(_text, language_model, untrained_language_model),
    ImageToImageSection: Kind(_images, image_model, untrained_image_model),
}
