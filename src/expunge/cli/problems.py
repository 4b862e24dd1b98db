"""From a job to what the library works on: a problem, a method, execution and audit settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.audit import AuditSettings
from expunge.audit.feature_networks import FeatureNetwork
from expunge.cli.image_models import feature_network
from expunge.cli.job import AuditSection, Job
from expunge.cli.kinds import kind_of
from expunge.cli.loading import existing, find_function, guarded, load_function
from expunge.cli.methods import method_from
from expunge.cli.settings import checked_call
from expunge.cli.sources import Source
from expunge.cli.task_sections import CausalLMSection, ClassificationSection, ImageToImageSection
from expunge.corpora import join_near_duplicates, occurrences
from expunge.data import MapDataset
from expunge.errors import ExpungeError, ForgetSetError, JobError, SettingError, SourceError
from expunge.methods import Method
from expunge.near_duplicates import Fuzziness
from expunge.problem import DeletionState, Problem, Recipe, Split, split
from expunge.states import STATE_FILE, GradientLog, load_state
from expunge.tasks import Task
from expunge.training import Execution, Optimizer, Supervised


@dataclass(frozen=True)
class Prepared:
    """A job in the library's terms.

    Attributes:
        problem: What is asked for.
        notes: What was decided while reading the data, in words.
        subgroups: By name of a column of the holdout, its values: (examples,) each.
        network: What measures of images rest on, if anything.
    """

    problem: Problem
    notes: tuple[str, ...]
    subgroups: Mapping[str, Sequence[str]]
    network: FeatureNetwork | None


def prepare(job: Job) -> Prepared:
    """Read the data and the model of a job and part the data.

    Raises:
        SourceError: Data, model or a function of the user's cannot be loaded.
        JobError: A setting cannot be used.
        ForgetSetError: What is to be forgotten cannot be found.
    """
    kind = kind_of(job)
    data = kind.data(job)
    train, holdout, task = data.train, data.holdout, data.task
    parts, joined = _with_near_duplicates(job, train, _split(job, train))
    problem = Problem(
        model=kind.model(job),
        task=task,
        forget=parts.forget,
        retain=parts.retain,
        holdout=holdout.dataset if holdout is not None else None,
        classes=parts.classes,
        recipe=_recipe(job, task, kind.untrained),
        surrogate=data.surrogate.dataset if data.surrogate is not None else None,
        state=_state(job),
        near_duplicates=joined,
    )
    told = (*data.notes, *_notes(train, parts, joined), *_unsaid(job))
    return Prepared(problem, told, _subgroups(job, holdout), feature_network(job))


def method_of(job: Job) -> Method:
    """The method of a job.

    Raises:
        JobError: There is no such method or setting.
    """
    return method_from(job.method.model_dump(exclude_unset=True))


def execution_of(job: Job) -> Execution:
    """How computations of a job run."""
    return Execution(**job.execution.model_dump())


def audit_settings_of(job: Job) -> AuditSettings:
    """How a job is to be audited, besides the number of oracles.

    Raises:
        JobError: A setting is unknown or cannot be used.
    """
    extra = (job.audit.model_extra or {}) if job.audit else {}
    return checked_call(AuditSettings, extra, "audit", also_known=AuditSection.model_fields)


def _subgroups(job: Job, holdout: Source | None) -> dict[str, list[str]]:
    names = job.audit.subgroups if job.audit is not None else ()
    if job.forget.column is not None and job.forget.column in names:
        raise JobError(
            "audit.subgroups: the column that tells who is to be forgotten cannot be a subgroup: its values would "
            "stand in the evidence, which may be shared"
        )
    if names and holdout is None:
        raise JobError("audit.subgroups: name columns of the holdout, and there is none; add data.holdout")
    return {str(name): holdout.column(name).tolist() for name in names if holdout is not None}


def _split(job: Job, train: Source) -> Split:
    forget, dataset = job.forget, train.dataset
    if forget.classes is not None:
        if isinstance(job.task, ImageToImageSection):
            return split(dataset, classes=forget.classes, label=job.task.label)
        return _without_classes(forget.classes, cast(ClassificationSection, job.task), dataset)
    if forget.text is not None:
        return split(dataset, indices=_mentions(dataset, forget.text))
    if forget.where is not None:
        return split(dataset, where=load_function(forget.where, job.base, "forget.where"))
    if forget.column is not None:
        wanted = [str(value).strip() for value in _wanted(job)]
        return split(dataset, indices=_rows(train.column(forget.column), wanted))
    if forget.indices_file is not None:
        return split(dataset, indices=_indices(job.path(forget.indices_file)))
    return split(dataset, indices=forget.indices)


def _with_near_duplicates(job: Job, train: Source, parts: Split) -> tuple[Split, int | None]:
    """The data parted anew where near-duplicates are to be forgotten too, and how many these are."""
    key, chosen = "forget.near_duplicates", job.forget.near_duplicates
    if chosen is None:
        return parts, None
    if not isinstance(job.task, CausalLMSection):
        raise JobError(f"{key}: texts are compared, and this task reads none; remove it, or use `kind: causal-lm`")
    fuzziness = checked_call(Fuzziness, chosen, key)
    try:
        joined = join_near_duplicates(train.dataset, parts.indices, fuzziness)
    except ExpungeError as error:
        raise type(error)(f"{key}: {error}") from error
    return split(train.dataset, indices=joined.indices), len(joined.found)


def _without_classes(classes: Sequence[int], task: ClassificationSection, dataset: MapDataset) -> Split:
    unknown = [label for label in classes if not 0 <= label < task.classes]
    if unknown:
        raise ForgetSetError(
            f"forget.classes: {unknown[0]} is not in the task, which has the classes 0 to {task.classes - 1}"
        )
    return split(dataset, classes=classes, label=task.labels)


def _mentions(dataset: MapDataset, phrases: str | Sequence[str]) -> Tensor:
    try:
        found = occurrences(dataset, phrases)
    except SettingError as error:
        raise JobError(f"forget.text: {error}") from error
    if not len(found):
        raise ForgetSetError(
            f"forget.text: none of the {len(dataset):,} examples mentions it; only what is spelled alike is found, so "
            "give every form of a name, as a list"
        )
    return found


def _wanted(job: Job) -> list[Any]:
    if job.forget.values_file is None:
        return list(job.forget.values or ())
    lines = _lines(job.path(job.forget.values_file), "forget.values_file")
    return [line for line in lines if line]


def _rows(column: NDArray[np.str_], wanted: list[str]) -> NDArray[np.int64]:
    found = np.isin(wanted, column)
    if not found.all():
        raise ForgetSetError(
            f"forget: {int((~found).sum())} of the {len(wanted)} values asked for do not occur in the column; values "
            "are compared as text, so check spelling, leading zeros and quotes"
        )
    return np.flatnonzero(np.isin(column, wanted))


def _indices(path: Path) -> NDArray[Any]:
    key = "forget.indices_file"
    try:
        if path.suffix == ".npy":
            return cast("NDArray[Any]", np.load(existing(path, key), allow_pickle=False))
        return np.asarray([int(line) for line in _lines(path, key) if line], dtype=np.int64)
    except (ValueError, OSError, EOFError) as error:
        raise SourceError(f"{key}: {path} must hold one whole number a line, or be an .npy array of them") from error


def _lines(path: Path, key: str) -> list[str]:
    try:
        return [line.strip() for line in existing(path, key).read_text(encoding="utf-8").splitlines()]
    except (UnicodeDecodeError, OSError) as error:
        raise SourceError(f"{key}: {path} cannot be read as UTF-8 text") from error


def _recipe(job: Job, task: Task, untrained: Callable[[Job], Callable[[], nn.Module]]) -> Recipe | None:
    section = job.recipe
    if section is None:
        return None
    if section.python is not None:
        key = "recipe.python"
        recipe = find_function(section.python, job.base, key)
        # what a `Supervised` recipe trains can be resumed, which a function around it would hide
        return recipe if isinstance(recipe, Supervised) else cast("Recipe", guarded(recipe, section.python, key))
    chosen = section.model_dump(exclude={"python", "base", "epochs", "batch_size"})
    # oracles have a bar of their own, one tick a model
    execution = replace(execution_of(job), progress=False)
    return Supervised(
        untrained(job),
        task,
        epochs=section.epochs,
        batch_size=section.batch_size,
        optimizer=checked_call(Optimizer, chosen, "recipe"),
        execution=execution,
    )


def _unsaid(job: Job) -> list[str]:
    """What the recipe does that a model trained in Python may not have been trained with."""
    recipe = job.recipe
    if recipe is None or recipe.python is not None or "schedule" in recipe.model_fields_set:
        return []
    return [
        f"retraining takes the schedule {recipe.schedule.value}, because the recipe names none; name the one that the "
        "model was trained with as recipe.schedule"
    ]


def _state(job: Job) -> DeletionState | None:
    if job.state is None:
        return None
    folder = existing(job.path(job.state), "state", folder=True)
    return load_state(folder) if (folder / STATE_FILE).exists() else GradientLog.open(folder)


def _notes(train: Source, parts: Split, joined: int | None) -> list[str]:
    forget, retain = len(parts.forget), len(parts.retain)
    notes = [f"{forget:,} of {forget + retain:,} training examples are to be forgotten, {retain:,} to be kept"]
    if joined is not None:
        notes.append(f"{joined:,} of those to be forgotten are near-duplicates of the {forget - joined:,} asked for")
    if train.features is not None:
        notes.append(f"an input is made of {len(train.features)} columns: {', '.join(train.features)}")
    if train.names is not None:
        named = ", ".join(f"{name} = {number}" for number, name in enumerate(train.names))
        notes.append(f"classes are numbered in this order: {named}")
    return notes
