"""What every method is: settings, needs, a guarantee tier, and one function."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Self

from torch import nn

from expunge.errors import LabelError, MissingNeedError, SettingError, UnsupportedTaskError
from expunge.privacy import Certificate, Tier
from expunge.problem import DeletionState, Problem
from expunge.tasks import Classification, Task
from expunge.training import Run


class Need(StrEnum):
    """Parts of a problem that a method cannot do without."""

    FORGET = "forget"
    RETAIN = "retain"
    HOLDOUT = "holdout"
    CLASSES = "classes"
    RECIPE = "recipe"
    SURROGATE = "surrogate"
    STATE = "state"


_REMEDIES = {
    Need.FORGET: "the examples to forget: pass `forget=` a dataset, as `expunge.split` makes it",
    Need.RETAIN: "retained training data: pass `retain=` a dataset, as `expunge.split` makes it",
    Need.HOLDOUT: "data of the same kind that were never trained on: pass `holdout=` a dataset",
    Need.CLASSES: "whole classes to forget: pass `classes=(3,)`, or split with `classes=[3]`",
    Need.RECIPE: "a recipe to retrain with: pass `recipe=` a function (dataset, seed) -> model",
    Need.SURROGATE: "data that stand in for the training set: pass `surrogate=` a dataset (in a job: `data.surrogate`)",
    Need.STATE: "what was recorded at training: pass `state=` what `expunge.record` or `load_state` returned",
}


class Maturity(StrEnum):
    """How settled a method's interface and results are."""

    STABLE = "stable"
    EXPERIMENTAL = "experimental"


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """What a method returns that has more to give than a model.

    Attributes:
        model: The new model.
        certificate: What is guaranteed of it.
        state: The problem's state without the deleted rows, for the next request.
    """

    model: nn.Module
    certificate: Certificate | None = None
    state: DeletionState | None = None


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """An algorithm that forgets; its fields are its hyper-parameters.

    Attributes:
        needs: What a problem must hold.
        tier: What is promised.
        tasks: Kinds of task it works on.
        paper: Where it comes from.
        maturity: How settled it is.
        presets: Named settings besides the defaults.
    """

    needs: ClassVar[frozenset[Need]]
    tier: ClassVar[Tier]
    paper: ClassVar[str]
    maturity: ClassVar[Maturity]
    tasks: ClassVar[tuple[type[Task], ...]] = (Task,)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    @abstractmethod
    def apply(self, problem: Problem, run: Run) -> "nn.Module | Forgotten":
        """Return a new model that has forgotten; `problem.model` and `problem.state` stay as they are."""

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """An instance with named settings, of which some may be changed.

        Raises:
            SettingError: There is no such preset.
        """
        if name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise SettingError(f"{cls.__name__} has no preset {name!r}; it has: {known}")
        return cls(**{**cls.presets[name], **changes})

    def require(self, problem: Problem) -> None:
        """Raise unless the problem holds what this method needs.

        Raises:
            MissingNeedError: Something is missing; the message says what to pass.
            UnsupportedTaskError: The method is not defined for this kind of task.
            LabelError: A class to be forgotten is none of the model's.
        """
        name = type(self).__name__
        if not isinstance(problem.task, self.tasks):
            known = ", ".join(task.__name__ for task in self.tasks)
            raise UnsupportedTaskError(f"{name} works on {known}, not on {type(problem.task).__name__}")
        if isinstance(problem.task, Classification):
            _require_known_classes(problem.classes, problem.task)
        for need in sorted(self.needs):
            require_need(name, problem, need)


def require_need(method: str, problem: Problem, need: Need) -> None:
    """Raise MissingNeedError unless the problem holds what the method of this name needs."""
    if not getattr(problem, need.value):
        raise MissingNeedError(f"{method} needs {_REMEDIES[need]}")


def _require_known_classes(classes: Iterable[int], task: Classification) -> None:
    for label in classes:
        if not 0 <= label < task.classes:
            raise LabelError(
                f"class {label} is not in the model, which has the classes 0 to {task.classes - 1}; name one of these"
            )
