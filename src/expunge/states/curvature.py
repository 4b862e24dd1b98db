"""Gradient and curvature of a head at its optimum: what a Newton step away from some rows needs, without the others."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import (
    ConvergenceError,
    CurvatureError,
    ForgetSetError,
    SettingError,
    ShapeError,
    StateError,
    UnsupportedTaskError,
)
from expunge.settings import require_one_of, require_positive
from expunge.states.base import digest_state
from expunge.states.head import HeadLoss, HeadRows, head_of, head_rows, head_weights, is_head_alone, ledger_rows
from expunge.states.rows import RowLedger
from expunge.states.solving import Solution, cholesky
from expunge.states.travelled import Travelled, rounded_up
from expunge.storage import digest_model
from expunge.tasks import Classification, Task

_SLACK = 1e-6
_REACH = 30.0  # where the exponential is worth nothing beside the other bound


@dataclass(frozen=True)
class HeadSettings:
    """The objective that a head was trained on, and what is checked of it.

    Args:
        l2: Strength of the penalty (l2/2) ‖W‖² beside the mean loss; the bias is penalised too.
        loss: Softmax cross-entropy, or a logistic loss a class.
        feature_norm: Norm that no row's features exceed, a bias's constant 1 included; a row that does is refused. By
            default the largest norm found, which is then measured and not enforced.
        tolerance: Largest gradient norm at which weights pass for an optimum.
    """

    l2: float
    loss: HeadLoss = HeadLoss.SOFTMAX
    feature_norm: float | None = None
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_positive(self, "l2", "feature_norm", "tolerance")
        require_one_of(self, "loss", HeadLoss)

    def norm_of(self, rows: HeadRows) -> float:
        """The bound on the features of these rows.

        Raises:
            ShapeError: A row exceeds `feature_norm`.
        """
        return check_norm(rows.largest_norm(), self.feature_norm)


@dataclass(frozen=True)
class CurvatureState:
    """What remains of the training set for a head: sums of gradients and curvatures at the recorded weights.

    The sums are over the rows that are left, and each Newton step starts from the weights held here. What a deletion
    leaves behind depends on whether it rebases the state (`NewtonRemoval.rebase`):

    - Without, the weights stay, and requests one by one lead where one request for all of them would. That state
      returns the row of a single deletion exactly; keep it like the data. At an optimum all recorded gradients add up
      to -recorded * l2 * weights, so -(gradient + recorded * l2 * weights) is the gradient of the deleted rows, which
      for one row is a multiple of its features.
    - `rebased`, the weights are those that the step leads to. Neither the step nor the sum of gradients is kept, but
      lengths (`Travelled`), with which the bounds of later requests are larger. No attack of ours computes a deleted
      row from that state alone. Together with all rows that are left one can: they and the curvature tell the weights
      that the curvature was taken at.

    Attributes:
        weights: (classes, width) float64, with the bias as last column.
        gradient: (classes, width) sum of the rows' gradients, without the penalty. A rebased state starts again from
            that of an optimum, -rows * l2 * weights, whose error is bounded by `travelled.carried`.
        curvature: Sum of the rows' curvatures: (classes * width)² for softmax, (classes, width, width) one-vs-rest. It
            is that at the recorded weights, in a rebased state but for `travelled.stray`.
        rows: Which rows the sums are over.
        settings: The objective.
        feature_norm: No row's features exceed it.
        recorded: Rows when the state was recorded.
        residual: Gradient norm of the objective when the state was recorded.
        bias: Whether the head has a bias.
        head_alone: Whether the model is nothing but the head.
        model: Digest of the model that the next request must bring.
        travelled: What is known of the way from the recorded weights to those held here.
    """

    kind: ClassVar[str] = "curvature"

    weights: Tensor = field(repr=False)
    gradient: Tensor = field(repr=False)
    curvature: Tensor = field(repr=False)
    rows: RowLedger = field(repr=False)
    settings: HeadSettings
    feature_norm: float
    recorded: int
    residual: float
    bias: bool
    head_alone: bool
    model: str
    travelled: Travelled = field(default_factory=Travelled)

    @classmethod
    def record(
        cls, model: nn.Module, task: Task, dataset: MapDataset, *, limit_bytes: float = 2 * 2**30, **settings: Any
    ) -> Self:
        """Record the state of a trained head.

        Args:
            model: A linear layer, or a model whose last layer is one.
            task: A classification.
            dataset: Everything that the head was trained on.
            limit_bytes: Largest curvature to keep.
            settings: Those of `HeadSettings`; `l2` must be given.

        Raises:
            ConvergenceError: The weights are no optimum of the objective.
            StateError: The curvature would be larger than `limit_bytes`.
            ShapeError: A row exceeds the feature norm.
            UnsupportedTaskError: The task is no classification.
        """
        objective = _settings(settings)
        if not isinstance(task, Classification):
            raise UnsupportedTaskError(f"a state of curvature needs Classification, not {type(task).__name__}")
        head = head_of(model, task)
        rows = head_rows(model, task, dataset, objective.loss)
        _require_room(rows, limit_bytes)
        norm = objective.norm_of(rows)
        weights = head_weights(head)
        gradient = rows.gradient_sum(weights)
        residual = float((gradient / len(rows) + objective.l2 * weights).norm())
        require_optimum(residual, objective.tolerance, objective.l2)
        return cls(
            weights,
            gradient,
            rows.curvature_sum(weights),
            RowLedger.of(*ledger_rows(task, dataset)),
            objective,
            norm,
            len(rows),
            residual,
            rows.bias,
            is_head_alone(model, head),
            digest_model(model),
        )

    def require_model(self, model: nn.Module) -> None:
        """Raise StateError unless this is the model that the state was recorded of, or last released with."""
        if digest_model(model) != self.model:
            raise StateError(
                "the state belongs to another model: it goes with the weights it was recorded of, and after a deletion "
                "with those that the deletion returned; load the two from the same run"
            )

    def without(self, forget: HeadRows, inputs: Tensor, labels: Tensor) -> Self:
        """The state without these rows.

        Args:
            forget: What the head sees of the rows.
            inputs: The rows as the task reads them, to be found in the ledger; see `ledger_rows`.
            labels: Their labels.

        Raises:
            UnknownRowError: A row was never in training, or was deleted before.
            ForgetSetError: No row would be left.
            ShapeError: The rows have another number of features.
            CurvatureError: The sums without the rows are none that any rows can have.
        """
        if forget.width != self.weights.shape[1]:
            raise ShapeError(
                f"the forget rows have {forget.width} features with the constant, the state {self.weights.shape[1]}; "
                "pass rows as they were recorded"
            )
        ledger = self.rows.remove(inputs, labels)
        if not len(ledger):
            raise ForgetSetError("no row would be left: forgetting everything means discarding model and state")
        check_norm(forget.largest_norm(), self.feature_norm)
        curvature = forget.curvature_sum(self.weights)
        trace = float(curvature.diagonal(dim1=-2, dim2=-1).sum())
        travelled = self.travelled.shrunk(len(self.rows), len(ledger), self._straying(len(forget), trace))
        torch.sub(self.curvature, curvature, out=curvature)
        lowest = float(curvature.diagonal(dim1=-2, dim2=-1).min())
        if lowest < -_SLACK * self.feature_norm**2 - travelled.stray:
            raise CurvatureError(
                f"without the forget rows the curvature falls to {lowest:.2g}, which no rows can have: they are not "
                "the rows that the state was recorded on, or the features have changed; pass rows as they were recorded"
            )
        return replace(
            self,
            gradient=self.gradient - forget.gradient_sum(self.weights),
            curvature=curvature,
            rows=ledger,
            travelled=travelled,
        )

    def bound_to(self, model: nn.Module) -> Self:
        """The state that goes with a released model."""
        return replace(self, model=digest_model(model))

    def mean_gradient(self) -> Tensor:
        """Gradient of the objective over the rows that are left, at the recorded weights: (classes, width)."""
        return self.gradient / len(self.rows) + self.settings.l2 * self.weights

    def newton_step(self) -> Solution:
        """The step from the recorded weights to the optimum of the rows that are left, to second order.

        Raises:
            CurvatureError: The curvature is not positive definite.
        """
        return cholesky(self.curvature, -self.mean_gradient(), rows=len(self.rows), penalty=self.settings.l2)

    def rebased(self, solution: Solution, along: float, left: float) -> Self:
        """The state at the weights that its `newton_step` leads to, without what tells the way back.

        Args:
            solution: What `newton_step` gave.
            along: The mean curvature of the rows along the step, sᵀHs, without the penalty, or a bound on it.
            left: Gradient norm that the step may leave, but for what is carried already.
        """
        weights, rows = self.weights + solution.step, len(self.rows)
        return replace(
            self,
            weights=weights,
            gradient=-rows * self.settings.l2 * weights,
            residual=rounded_up(self.residual),
            travelled=self.travelled.stepped(left, float(solution.step.norm()), math.sqrt(rows * along)),
        )

    def digest(self) -> str:
        """SHA-256 over everything the state holds."""
        return digest_state(self)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, sums and row digests."""
        held = {"weights": self.weights, "gradient": self.gradient, "curvature": self.curvature}
        return held | self.rows.tensors()

    def notes(self) -> dict[str, Any]:
        """The objective and what was measured."""
        return {
            "settings": asdict(self.settings) | {"loss": self.settings.loss.value},
            **{name: getattr(self, name) for name in _NOTED},
            "travelled": asdict(self.travelled),
        }

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], notes: dict[str, Any]) -> Self:
        """From what `tensors` and `notes` gave."""
        noted = dict(notes)
        written: dict[str, Any] = dict(noted.pop("settings"))
        written["loss"] = HeadLoss(written["loss"])
        settings = HeadSettings(**written)
        held = {name: tensors[name] for name in ("weights", "gradient", "curvature")}
        return cls(
            **held,
            rows=RowLedger.restore(tensors),
            settings=settings,
            **{name: noted[name] for name in _NOTED},
            travelled=Travelled(**noted["travelled"]),
        )

    def _straying(self, rows: int, trace: float) -> float:
        """How far the curvature of `rows` rows, of this trace at the weights, may be from that where H was taken."""
        loss, moved = self.settings.loss, self.travelled.moved
        by_lipschitz = rows * loss.hessian_lipschitz(self.feature_norm) * moved
        reach = loss.concordance(self.feature_norm) * moved
        return min(by_lipschitz, math.expm1(reach) * trace) if reach < _REACH else by_lipschitz


_NOTED = ("feature_norm", "recorded", "residual", "bias", "head_alone", "model")


def check_norm(found: float, allowed: float | None) -> float:
    """The norm that features are bounded by: `allowed` where it is given, else what was found.

    Raises:
        ShapeError: A row exceeds what is allowed.
    """
    if allowed is None:
        return found
    if found > allowed * (1 + _SLACK):
        raise ShapeError(
            f"a row has features of norm {found:.4g} (with the constant of the bias), above the {allowed:g} that the "
            "guarantee is computed for; train on clipped features (expunge.networks.ClippedFeatures), or state the "
            "larger norm"
        )
    return max(found, allowed)


def require_optimum(residual: float, tolerance: float, l2: float) -> None:
    """Raise ConvergenceError unless a gradient norm is small enough to pass for an optimum."""
    if not residual <= tolerance:
        raise ConvergenceError(
            f"the weights are no optimum of the stated objective: its gradient has norm {residual:.3g}, above the "
            f"tolerance {tolerance:g}, so they may be {residual / l2:.3g} from it; train longer or with "
            "`expunge.states.fit_head`, check `l2` and `loss`, or raise the tolerance and accept more noise"
        )


def _settings(given: Mapping[str, Any]) -> HeadSettings:
    known = [each.name for each in fields(HeadSettings)]
    unknown = sorted(set(given) - set(known))
    if unknown or "l2" not in given:
        what = (
            f"there is no setting {', '.join(unknown)}" if unknown else "`l2`, the strength of the penalty, is missing"
        )
        raise SettingError(f"{what}; a state of curvature has the settings limit_bytes, {', '.join(known)}")
    loss = given.get("loss", HeadLoss.SOFTMAX)
    if not isinstance(loss, HeadLoss):
        if loss not in [each.value for each in HeadLoss]:
            raise SettingError(f"loss must be one of {', '.join(each.value for each in HeadLoss)}, not {loss!r}")
        loss = HeadLoss(loss)
    chosen: dict[str, Any] = {**given, "loss": loss}
    return HeadSettings(**chosen)


def _require_room(rows: HeadRows, limit_bytes: float) -> None:
    side = rows.loss.parameters_at_once(rows.classes, rows.width)
    blocks = 1 if rows.loss is HeadLoss.SOFTMAX else rows.classes
    needed = 8 * side**2 * blocks
    if needed > limit_bytes:
        raise StateError(
            f"the curvature of {rows.classes} classes by {rows.width} features takes {needed / 2**30:.1f} GiB, above "
            f"limit_bytes ({limit_bytes / 2**30:.1f} GiB), and is not approximated; train the head one-vs-rest "
            "(loss='one-vs-rest': one block a class), or keep retained or surrogate data, which need no built curvature"
        )
