"""Sufficient statistics: models that are a formula of a few sums, from which rows are taken away exactly.

A sum without a row is the sum that never had it. So the model after a deletion is the model fitted to the other rows,
and needs none of them. The sums are held in twice the working precision (`double_double`), so that this is true of the
numbers too.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import (
    CurvatureError,
    DataError,
    ForgetSetError,
    LostPrecisionError,
    ModelError,
    NonFiniteDataError,
    SavedModelError,
    SettingError,
    ShapeError,
    StateError,
    UnsupportedTaskError,
)
from expunge.states.base import digest_state
from expunge.states.double_double import DoubleDouble
from expunge.states.rows import RowLedger
from expunge.storage import digest_model
from expunge.tasks import Classification, Regression, Task
from expunge.training.batches import in_order

_BATCH = 4096
_LARGEST = 1e100
_SMALLEST_PIVOT = 1e-14
_ROUNDING = 2.0**-100
"""Bound on what sums of two float64 lose of a row that goes in and out: 2^-104 a step, and few steps."""
_TOLERATED = 1e-11
"""Largest loss, as a share of what the fit is computed from, at which a deletion is called exact."""


@dataclass(frozen=True)
class SufficientStatistics(ABC):
    """The sums that a model is a formula of, and which rows they were taken over.

    Args:
        sums: By name, as `measure` gives them for all rows that are held.
        rows: The rows that are held.
        shape: Features and columns of targets.
        model: Digest of the model that goes with these sums; empty where there is none.
    """

    kind: ClassVar[str]

    sums: Mapping[str, DoubleDouble]
    rows: RowLedger
    shape: tuple[int, int]
    model: str

    @classmethod
    def record(cls, model: nn.Module, task: Task, dataset: MapDataset, **settings: Any) -> Self:
        """Sums over a training set, for a model that was fitted to it with the same settings.

        Raises:
            UnsupportedTaskError: The task has neither classes nor numbers to predict.
            ModelError: The model is of another kind, or is not what a fit gives.
        """
        state = cls.of(*read_rows(task, dataset), **cls.settings_for(model, task, settings))
        state.require_fit(model)
        return replace(state, model=digest_model(model))

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, **settings: Any) -> Self:
        """Sums over these rows.

        Args:
            inputs: (rows, features).
            targets: (rows, columns); for classes, 1 in the column of the row's class and 0 elsewhere.
            settings: Of this kind.
        """
        known = {field.name for field in fields(cls)} - {field.name for field in fields(SufficientStatistics)}
        if not known >= settings.keys():
            unknown = ", ".join(sorted(settings.keys() - known))
            raise SettingError(f"{cls.kind} has no setting {unknown}; it has: {', '.join(sorted(known))}")
        x, t = _numbers(inputs), _numbers(targets)
        return cls(cls.measure(x, t), RowLedger.of(x, t), (x.shape[1], t.shape[1]), "", **settings)

    def without(self, inputs: Tensor, targets: Tensor) -> Self:
        """The same statistics as if these rows had never been there.

        Args:
            inputs: (rows, features).
            targets: (rows, columns), as in `of`.

        Raises:
            UnknownRowError: A row is not held, or was deleted before.
            ForgetSetError: No row would stay.
            ShapeError: The number of features is not the recorded one.
            LostPrecisionError: The rows are so large that the sums without them have lost digits.
        """
        x, t = _numbers(inputs), _numbers(targets)
        if (x.shape[1], t.shape[1]) != self.shape:
            raise ShapeError(
                f"the rows to forget have {x.shape[1]} features and {t.shape[1]} columns of targets, where "
                f"{self.shape[0]} and {self.shape[1]} were recorded; prepare them as they were for training"
            )
        rows = self.rows.remove(x, t)
        if len(rows) == 0:
            raise ForgetSetError("the forget set is everything that the model holds; discard the model instead")
        taken = self.measure(x, t)
        sums = {name: total - taken[name] for name, total in self.sums.items()}
        left = replace(self, sums=sums, rows=rows, model="")
        lost = _ROUNDING * left.outweighed(x, t)
        if not lost <= _TOLERATED:
            raise LostPrecisionError(
                f"these rows cannot be taken out exactly: in a feature, a target or a class they are so large beside "
                f"how the other rows vary that up to {lost:.1e} of what the fit is computed from is lost, where "
                f"{_TOLERATED:g} is the limit; fit anew without them, and correct or clip outliers before a fit"
            )
        return left

    def bound_to(self, model: nn.Module) -> Self:
        """These statistics as those of `model`."""
        return replace(self, model=digest_model(model))

    def require_model(self, model: nn.Module) -> None:
        """Raise StateError unless these are the statistics of `model`."""
        if digest_model(model) != self.model:
            raise StateError(
                "the state belongs to another model, or to this one before a deletion; pass model and state that were "
                "recorded, saved or returned together"
            )

    def require_fit(self, model: nn.Module) -> None:
        """Raise ModelError where a model's parameters are not what `solve` gives, up to their precision."""
        fitted = self.solve()
        found = self.parameters_of(model)
        for name, expected in fitted.items():
            here = found[name].detach().cpu()
            if here.shape != expected.shape:
                raise ModelError(
                    f"the model's {name} has shape {tuple(here.shape)}, the data need {tuple(expected.shape)}; "
                    "build the model for these data"
                )
            off = float((here.double() - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
            if off > torch.finfo(here.dtype).eps ** 0.5:
                raise ModelError(
                    f"the model's {name} differs from the fit to these data by {off:.1e} of its size, so taking rows "
                    "out of the sums would not undo what it learned; fit it with the same settings, for instance with "
                    f"`ClosedForm(build, task, kind={self.kind!r}, ...)`, and record that model"
                )

    def write_to(self, model: nn.Module) -> None:
        """Set the parameters of a model to the fit, rounded to their precision."""
        found = self.parameters_of(model)
        with torch.no_grad():
            for name, value in self.solve().items():
                found[name].copy_(value)

    @classmethod
    @abstractmethod
    def settings_for(cls, model: nn.Module, task: Task, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings completed from model and task; raise a ModelError for a model of another kind."""

    @classmethod
    @abstractmethod
    def measure(cls, inputs: Tensor, targets: Tensor) -> dict[str, DoubleDouble]:
        """The sums over some rows, by name."""

    @abstractmethod
    def outweighed(self, inputs: Tensor, targets: Tensor) -> float:
        """How many times larger rows that were taken out are than what the fit without them is computed from.

        It is a bound over features and targets: times the relative rounding of a sum, it bounds the share that is lost.

        Args:
            inputs: (rows, features) float64, of the rows that these sums no longer hold.
            targets: (rows, columns) float64, likewise.
        """

    @abstractmethod
    def solve(self) -> dict[str, Tensor]:
        """The fitted parameters in float64, by the names that `parameters_of` uses."""

    @abstractmethod
    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of a model that the fit determines."""

    def options(self) -> dict[str, Any]:
        """The settings of this kind, as `of` takes them."""
        common = {field.name for field in fields(SufficientStatistics)}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in common}

    def digest(self) -> str:
        """SHA-256 over everything the state holds."""
        return digest_state(self)

    def tensors(self) -> dict[str, Tensor]:
        """Sums and digests of rows, by name."""
        high = {f"sums.{name}.high": total.high for name, total in self.sums.items()}
        low = {f"sums.{name}.low": total.low for name, total in self.sums.items()}
        return high | low | self.rows.tensors()

    def notes(self) -> dict[str, Any]:
        """Shape, model and settings."""
        return {"shape": list(self.shape), "model": self.model, "options": self.options()}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], notes: dict[str, Any]) -> Self:
        """Make a state of what `tensors` and `notes` gave."""
        features, columns = notes["shape"]
        names = [name.removeprefix("sums.").removesuffix(".high") for name in tensors if name.endswith(".high")]
        sums = {name: DoubleDouble(tensors[f"sums.{name}.high"], tensors[f"sums.{name}.low"]) for name in names}
        if set(sums) != set(cls.measure(torch.zeros(0, features), torch.zeros(0, columns))):
            raise SavedModelError(f"the state lacks sums that {cls.kind} statistics consist of; restore it from a copy")
        return cls(sums, RowLedger.restore(tensors), (features, columns), notes["model"], **notes["options"])


def read_rows(task: Task, dataset: MapDataset) -> tuple[Tensor, Tensor]:
    """Inputs, (rows, features), and targets, (rows, columns), as a task reads them; classes become columns of 0 and 1.

    Raises:
        UnsupportedTaskError: The task has neither classes nor numbers to predict.
    """
    if not isinstance(task, Classification | Regression):
        raise UnsupportedTaskError(
            f"sufficient statistics are of Classification and Regression, not of {type(task).__name__}"
        )
    batches = [cast("dict[str, Tensor]", batch) for batch in in_order(task, dataset, _BATCH)]
    inputs = torch.cat([batch["inputs"].flatten(1).double() for batch in batches])
    if isinstance(task, Regression):
        return inputs, torch.cat([batch["targets"].double() for batch in batches])
    return inputs, F.one_hot(torch.cat([batch["labels"] for batch in batches]), task.classes).double()


def ratio(taken: Tensor, left: Tensor) -> Tensor:
    """Taken by left: zero where nothing was taken, infinity where something was and nothing is left."""
    return torch.where(taken > 0, taken / left.clamp(min=0), 0.0)


def with_constant(inputs: Tensor) -> Tensor:
    """The features and a last one that is always 1: (rows, features + 1)."""
    return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)


def factorised(system: Tensor, what: str, remedy: str) -> Tensor:
    """The Cholesky factor of a system; raise a CurvatureError where it is singular to working precision."""
    factor, failed = cast("tuple[Tensor, Tensor]", torch.linalg.cholesky_ex(system))
    pivots = factor.diagonal().square() / system.diagonal()  # the share of each feature that the ones before leave open
    if bool(failed) or not bool((pivots > _SMALLEST_PIVOT).all()):
        raise CurvatureError(f"{what} is singular, so there is no one fit; {remedy}")
    return factor


def linear_layer(model: nn.Module, kind: str) -> nn.Linear:
    """The layer of a model that is a linear layer, after flattening at most."""
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    *before, last = itertools.dropwhile(lambda layer: isinstance(layer, nn.Flatten), layers)
    if before or not isinstance(last, nn.Linear):
        raise ModelError(
            f"{kind} statistics are of a model that is one Linear layer (a Flatten may come before it), not of "
            f"{type(model).__name__}; for a layer on top of a network, record that layer on the network's features"
        )
    return last


def _numbers(values: Tensor) -> Tensor:
    table = values.detach().cpu().double().reshape(len(values), -1)
    if not bool(torch.isfinite(table).all()):
        raise NonFiniteDataError("an input or a target holds NaN or infinity; clean the dataset or drop the example")
    if table.numel() and float(table.abs().max()) > _LARGEST:
        raise DataError(f"a number is larger than {_LARGEST:g}, so its square could not be held; rescale the feature")
    return table
