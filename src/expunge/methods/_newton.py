"""Newton steps away from a forget set, by what is known of the other rows, and how far from retraining they may end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import ConvergenceError, DataError, StateError
from expunge.methods._training_set import conditions_on_rows
from expunge.networks import ClippedFeatures
from expunge.privacy import (
    Constant,
    CurvatureMismatch,
    DistanceBound,
    Origin,
    bernstein_deviation,
    curvature_drift,
    curvature_mismatch,
    largest_weights,
    newton_remainder,
    uniform_deviation,
)
from expunge.problem import Problem
from expunge.states import CurvatureState, HeadRows, HeadSettings
from expunge.states.curvature import check_norm, require_optimum
from expunge.states.head import head_of, head_rows, head_weights, is_head_alone, ledger_rows
from expunge.states.solving import Solution, conjugate_gradients, require_positive_definite
from expunge.states.travelled import Travelled
from expunge.tasks import Classification
from expunge.training import Run


@dataclass(frozen=True)
class Removal:
    """Weights after a removal, before noise.

    Attributes:
        weights: (classes, width).
        bound: How far they may be from the reference.
        rows: Size of the training set before this request.
        deleted: Rows deleted in all requests since the weights that the step started from.
        constants: What the bound was computed from.
        conditions: What it holds under and could not be checked.
        failure: Probability with which the bound fails.
        products: Curvature products taken.
        examples: Rows read for them.
        state: The state without the forget set, where there is one.
        since: In which requests rows were deleted, in words.
        fitted_to: What the reference is trained on, in words.
    """

    weights: Tensor
    bound: DistanceBound
    rows: int
    deleted: int
    constants: Sequence[Constant]
    conditions: Sequence[str] = ()
    failure: float = 0.0
    products: int = 1
    examples: int = 0
    state: CurvatureState | None = field(default=None, repr=False)
    since: str = "in this request"
    fitted_to: str = "the training set without the deleted rows"


@dataclass(frozen=True)
class Objective:
    """What a head was trained on where no state says it; see `NewtonRemoval` for the fields."""

    settings: HeadSettings
    solver_tolerance: float
    reference_residual: float | None


def by_state(problem: Problem, run: Run, reference_residual: float | None, *, rebase: bool = False) -> Removal:
    """From the recorded curvature and the forget rows alone."""
    task, state = cast(Classification, problem.task), problem.state
    if not isinstance(state, CurvatureState):
        raise StateError(
            f"the state is of kind {getattr(state, 'kind', None)!r}, where 'curvature' is needed; record one with "
            "`expunge.record(model, task, dataset, l2=...)`"
        )
    state.require_model(problem.model)
    dataset = cast(MapDataset, problem.forget)
    forget = head_rows(problem.model, task, dataset, state.settings.loss, run.device)
    left = state.without(forget, *ledger_rows(task, dataset))
    gradient, solution = left.mean_gradient(), left.newton_step()
    objective, norm = left.settings, left.feature_norm
    length = float(solution.step.norm())
    along = curvature_along(solution, gradient, objective.l2)
    past, count = left.travelled, len(left.rows)
    most = along + past.stray / count * length**2
    slopes = objective.loss.hessian_lipschitz(norm), objective.loss.concordance(norm)
    remainder = newton_remainder(length, most, *slopes, past.moved)
    drift = curvature_drift(length, most, past.moved, past.spread / math.sqrt(count), *slopes)
    drift += past.stray / count * length
    solver = float(solution.residual.norm())
    added = solver + drift + remainder
    reference = left.residual if reference_residual is None else reference_residual
    enforced = objective.feature_norm is not None
    return Removal(
        state.weights + solution.step,
        DistanceBound(past.carried + added, reference, objective.l2),
        len(state.rows),
        left.recorded - len(left.rows),
        [
            _l2(objective.l2),
            _count("n", left.recorded, Origin.MEASURED, "rows that the state was recorded on"),
            _norm(norm, Origin.ENFORCED if enforced else Origin.MEASURED),
            *_loss_constants(objective, norm, task.classes),
            _measured("recorded gradient norm", left.residual, "of the objective at the recorded weights"),
            _measured("step", length, "length of the Newton step, ‖s‖"),
            _measured("curvature along the step", along, "sᵀHs of the retained rows, without the penalty"),
            _measured("remainder", remainder, "bound on the gradient that one Newton step leaves"),
            _measured("solver residual", solver, "gradient left by solving the system inexactly"),
            *(_way(past, drift) if past.moved else ()),
            _reference(reference),
        ],
        backbone(left.head_alone),
        examples=len(forget),
        state=left.rebased(solution, most, added) if rebase else left,
        since="since the state was recorded",
    )


def by_retain(problem: Problem, run: Run, objective: Objective, steps: int) -> Removal:
    """From the retained data, with the gradient measured after the step."""
    task, settings = cast(Classification, problem.task), objective.settings
    retain, forget = (
        head_rows(problem.model, task, cast(MapDataset, dataset), settings.loss, run.device)
        for dataset in (problem.retain, problem.forget)
    )
    shown = conditions_on_rows(problem, task)
    head = head_of(problem.model, task)
    weights, rows = head_weights(head), len(retain) + len(forget)
    for each in (retain, forget):
        settings.norm_of(each)
    start = float(_mean_gradient(weights, settings.l2, retain, forget).norm())
    if objective.reference_residual is None:
        require_optimum(start, settings.tolerance, settings.l2)
    reference = start if objective.reference_residual is None else objective.reference_residual
    products, gradient = 0, _mean_gradient(weights, settings.l2, retain)
    before = after = float(gradient.norm())
    for _ in range(steps):
        chances = retain.probabilities(weights)
        solution = conjugate_gradients(
            lambda v, chances=chances: retain.product_sum(chances, v) / len(retain) + settings.l2 * v,
            -gradient,
            tolerance=objective.solver_tolerance,
        )
        weights, products = weights + solution.step, products + solution.products
        gradient = _mean_gradient(weights, settings.l2, retain)
        after = float(gradient.norm())
    if after > before and after > settings.tolerance:
        raise ConvergenceError(
            f"the Newton steps raised the gradient norm from {before:.3g} to {after:.3g}: the forget set is too large "
            "a part of the training set, or the weights too far from an optimum; retrain the head, or forget in parts"
        )
    return Removal(
        weights,
        DistanceBound(after, reference, settings.l2),
        rows,
        len(forget),
        [
            _l2(settings.l2),
            _count("n", rows, Origin.MEASURED, "rows of retain and forget set"),
            _measured("gradient norm before", start, "of the objective over both sets at the original weights"),
            _measured(
                "gradient norm after", after, "of the objective over the retain set after the step, before noise"
            ),
            _reference(reference),
        ],
        [*shown, *backbone(is_head_alone(problem.model, head))],
        products=products,
        examples=products * len(retain),
        fitted_to="the retained data given",
    )


def by_surrogate(
    problem: Problem, run: Run, objective: Objective, *, examples: int, distance: float, residual: float, failure: float
) -> Removal:
    """From data that stand in for the training set, of `examples` rows."""
    task, settings = cast(Classification, problem.task), objective.settings
    surrogate, forget = (
        head_rows(problem.model, task, cast(MapDataset, dataset), settings.loss, run.device)
        for dataset in (problem.surrogate, problem.forget)
    )
    head = head_of(problem.model, task)
    weights, deleted, l2, loss = head_weights(head), len(forget), settings.l2, settings.loss
    left = examples - deleted
    if left < 1:
        raise DataError(f"training_examples is {examples}, but {deleted} rows are to be forgotten; give the number of "
                        "rows that the model was trained on")  # fmt: skip
    norm = check_norm(max(surrogate.largest_norm(), forget.largest_norm()), settings.feature_norm)
    gradient = -(forget.gradient_sum(weights) + deleted * l2 * weights) / left
    solution, smallest = _combined_step(surrogate, forget, weights, gradient, examples, l2, norm, objective)
    length, share = float(solution.step.norm()), examples / left
    mismatch = _mismatch(surrogate, weights, settings, norm, examples, distance, residual, failure)
    along = curvature_along(solution, gradient, l2) + share * mismatch.total * length**2
    remainder = newton_remainder(length, along, loss.hessian_lipschitz(norm), loss.concordance(norm))
    solver, carried = float(solution.residual.norm()), share * residual
    total = carried + solver + share * mismatch.total * length + remainder
    shortcut = length + (float(gradient.norm()) + carried) / l2
    used = mismatch.failure if total / l2 < shortcut else 0.0
    reference = residual if objective.reference_residual is None else objective.reference_residual
    clipped = _is_clipped(problem.model, head, settings)
    conditions = [
        "training and surrogate examples are independent draws from distributions whose total variation distance is "
        f"at most {distance:g}, and the surrogate played no part in training",
        "the forget rows were in training, each as often as it is given, and were not deleted before",
        *backbone(is_head_alone(problem.model, head)),
    ]
    return Removal(
        weights + solution.step,
        DistanceBound(total, reference, l2, shortcut),
        examples,
        deleted,
        [
            _l2(l2),
            _count("n", examples, Origin.ASSUMED, "rows of the training set"),
            _count("surrogate rows", len(surrogate), Origin.MEASURED, "rows of the surrogate"),
            Constant(name="τ", value=distance, origin=Origin.ASSUMED, meaning="total variation distance, at most"),
            _norm(norm, Origin.ENFORCED if clipped else Origin.ASSUMED),
            *_loss_constants(settings, norm, task.classes),
            Constant(name="training residual", value=residual, origin=Origin.ASSUMED,
                     meaning="gradient norm at which training stopped, at most"),
            _measured("smallest curvature", smallest, "of the combined system"),
            _measured("step", length, "length of the Newton step, ‖s‖"),
            _measured("mismatch", mismatch.total, "bound on ‖H_D - H_S‖: "
                      f"{mismatch.distance:.3g} by τ, {mismatch.training:.3g} and {mismatch.surrogate:.3g} because "
                      "training set and surrogate are samples; never more than β"),
            _measured("remainder", remainder, "bound on the gradient that one Newton step leaves"),
            _measured("solver residual", solver, "gradient left by solving the system inexactly"),
            _measured("shortcut", shortcut, "bound on the distance without a surrogate: step plus way to the optimum"),
            _measured("δ'", used, "part of delta: the mismatch's bound fails, over the draw of both sets"),
            _reference(reference),
        ],
        conditions,
        used,
        solution.products,
        solution.products * (len(surrogate) + len(forget)),
    )  # fmt: skip


def curvature_along(solution: Solution, gradient: Tensor, l2: float) -> float:
    """SᵀHs of the data, without the penalty, from (H + l2) s = residual - gradient."""
    step = solution.step
    return max(float((step * (solution.residual - gradient)).sum()) - l2 * float(step.square().sum()), 0.0)


def backbone(head_alone: bool) -> list[str]:
    """What must hold of the layers before the head."""
    if head_alone:
        return []
    return [
        "the layers before the head, and everything they hold, were not trained on the forget set (public or fixed "
        "features); the guarantee covers the head alone"
    ]


def _combined_step(
    surrogate: HeadRows, forget: HeadRows, weights: Tensor, gradient: Tensor, examples: int, l2: float, norm: float,
    objective: Objective,
) -> tuple[Solution, float]:  # fmt: skip
    """Solve (n H_S - m H_U) / (n - m) + l2 as one system; also its smallest curvature, or a bound below it."""
    left = examples - len(forget)
    chances, leaving = surrogate.probabilities(weights), forget.probabilities(weights)

    def product(direction: Tensor) -> Tensor:
        stays = surrogate.product_sum(chances, direction) * (examples / len(surrogate))
        return (stays - forget.product_sum(leaving, direction)) / left + l2 * direction

    smallest = l2 - len(forget) * objective.settings.loss.smoothness(norm) / left
    if smallest <= 0:  # the bound says nothing, so look
        smallest = require_positive_definite(product, weights)
    return conjugate_gradients(product, -gradient, tolerance=objective.solver_tolerance), smallest


def _mismatch(
    surrogate: HeadRows, weights: Tensor, settings: HeadSettings, norm: float, examples: int, distance: float,
    residual: float, failure: float,
) -> CurvatureMismatch:  # fmt: skip
    loss, classes, beta = settings.loss, surrogate.classes, settings.loss.smoothness(norm)
    softmax = loss.parameters_at_once(classes, 1) == classes
    largest = largest_weights(settings.l2, loss.at_zero(classes), loss.lipschitz(norm, classes), residual)
    if float(weights.norm()) > largest:
        raise ConvergenceError(
            f"weights of norm {float(weights.norm()):.3g} are no optimum of the stated objective, which has none above "
            f"{largest:.3g} with l2 {settings.l2:g} and a gradient norm of at most {residual:g}; correct these settings"
        )
    training = uniform_deviation(
        examples,
        beta,
        failure / 2 if softmax else failure / (2 * classes),
        weight_norm=largest,
        feature_norm=norm,
        slopes=loss.slopes(norm),
        outputs=classes if softmax else 1,
    )
    sampled = bernstein_deviation(len(surrogate), beta, weights.numel(), failure / 2)
    return curvature_mismatch(distance, beta, training, sampled, failure)


def _mean_gradient(weights: Tensor, l2: float, *parts: HeadRows) -> Tensor:
    total = torch.stack([part.gradient_sum(weights) for part in parts]).sum(0)
    return total / sum(len(part) for part in parts) + l2 * weights


def _is_clipped(model: nn.Module, head: nn.Module, settings: HeadSettings) -> bool:
    """Whether the model itself keeps the features of every row, seen or unseen, within the norm."""
    parts = list(model.children()) if isinstance(model, nn.Sequential) else []
    clip = parts[-2] if len(parts) > 1 and parts[-1] is head else None
    bias = getattr(head, "bias", None)
    allowed = settings.feature_norm
    return isinstance(clip, ClippedFeatures) and bias is None and (allowed is None or clip.norm <= allowed)


def _way(past: Travelled, drift: float) -> list[Constant]:
    """What it costs that the curvature was taken at other weights than those the step started from."""
    return [
        _measured("carried gradient", past.carried, "bound on the gradient at the weights that the state was rebased "
                  "to, in proportion to the rows that left since"),
        _measured("moved", past.moved, "bound on how far those are from the weights that the curvature was taken at"),
        _measured("spread", past.spread, "bound on √(dᵀHd) for that way d and the summed curvature H of the rows left"),
        _measured("stray", past.stray, "bound on how far the curvature is from that sum, for rows deleted since"),
        _measured("drift", drift, "bound on the gradient left because the curvature was taken elsewhere"),
    ]  # fmt: skip


def _measured(name: str, value: float, meaning: str) -> Constant:
    return Constant(name=name, value=value, origin=Origin.MEASURED, meaning=meaning)


def _count(name: str, value: int, origin: Origin, meaning: str) -> Constant:
    return Constant(name=name, value=value, origin=origin, meaning=meaning)


def _l2(value: float) -> Constant:
    return Constant(name="λ", value=value, origin=Origin.ENFORCED,
                    meaning="strength of the penalty (λ/2)‖W‖², the least curvature of the objective")  # fmt: skip


def _norm(value: float, origin: Origin) -> Constant:
    return Constant(name="C", value=value, origin=origin,
                    meaning="largest norm of a row's features, with the constant of the bias")  # fmt: skip


def _reference(value: float) -> Constant:
    return Constant(name="reference residual", value=value, origin=Origin.ENFORCED,
                    meaning="gradient norm at which the reference's training may stop, by definition")  # fmt: skip


def _loss_constants(settings: HeadSettings, norm: float, classes: int) -> list[Constant]:
    loss = settings.loss
    return [
        Constant(name="L", value=loss.lipschitz(norm, classes), origin=Origin.ENFORCED,
                 meaning="largest gradient of a row's loss, from C"),
        Constant(name="β", value=loss.smoothness(norm), origin=Origin.ENFORCED,
                 meaning="largest curvature of a row's loss, from C"),
        Constant(name="M", value=loss.hessian_lipschitz(norm), origin=Origin.ENFORCED,
                 meaning="how fast a row's curvature changes with the weights, from C"),
        Constant(name="κ", value=loss.concordance(norm), origin=Origin.ENFORCED,
                 meaning="how fast it changes relative to itself, from C"),
    ]  # fmt: skip
