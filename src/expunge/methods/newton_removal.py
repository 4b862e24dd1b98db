"""Certified removal from a linear head: one Newton step and Gaussian noise."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import psutil
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from expunge.errors import SettingError
from expunge.methods._newton import Objective, Removal, by_retain, by_state, by_surrogate
from expunge.methods.base import Forgotten, Maturity, Method, Need, Tier, require_need
from expunge.privacy import (
    Certificate,
    DeletionBudget,
    gaussian_sigma,
    require_meaning,
    require_request,
    secret_gaussian,
    tier_of,
)
from expunge.problem import Problem
from expunge.settings import require_at_least, require_below, require_one_of, require_positive, require_whole
from expunge.states import HeadLoss, HeadSettings
from expunge.states.head import head_of, set_head_weights
from expunge.tasks import Classification
from expunge.training import PhaseRecord, Run
from expunge.training.seeds import derive


@dataclass(frozen=True)
class NewtonRemoval(Method):
    """Step from the optimum of a linear head to that of the retained data, to second order, and add Gaussian noise.

    The step is s = -H⁻¹ g with gradient g and curvature H of the retained data alone, and the noise is calibrated to a
    bound on the distance that is left to retraining. There are three sources of g and H:

    - `state`: what `expunge.record` kept; no data but the forget set is needed. The bound is (M/2)‖s‖²/λ or better.
    - `retain`: the retained data; the bound is the gradient norm measured after the step, over λ. The certificate is
      `conditional` (retain and forget set are the training set) unless the problem has the recorded state as well,
      which is then only asked whether they are.
    - `surrogate`: data of the same kind; the bound holds provided the two distributions are within
      `surrogate_distance`, so the certificate is `conditional`.

    The certificate compares with retraining the head on the retained data and adding the same noise. Where the model
    has layers before the head it is `conditional` too: they must not have been trained on the forget set.

    Args:
        curvature: The source.
        epsilon: Privacy loss. Default 1 (ours).
        delta: Probability with which the loss may be larger; 1/n² by default (ours).
        sigma: Standard deviation of the noise, fixed beforehand. By default the least that is needed, which depends on
            the data; a run that would need more than a fixed one is refused.
        l2: Strength of the penalty (l2/2)‖W‖² in the objective, on a mean loss. A state knows it.
        loss: `softmax` or `one-vs-rest`. A state knows it.
        feature_norm: Norm that no row's features may exceed, a bias's constant 1 included. A state knows it.
        tolerance: Largest gradient norm at which the original passes for an optimum. A state was checked for its own.
        rebase: With `state`: whether the next state starts from the new weights and no longer returns deleted rows;
            without it the next state returns a deleted row exactly. It costs this request nothing, but makes the bounds
            of later ones larger, tenfold at once with few rows, and cannot be undone: hence not the default. Of several
            requests in a row only the last need rebase.
        reference_residual: Gradient norm at which the reference's training may stop; by default that of the original.
            Give it from the second request on with `retain`: a released model has noise on it and is no optimum.
        solver_tolerance: Residual of the conjugate gradients, relative to the gradient; what is left enters the bound.
        steps: Newton steps with `retain`.
        training_examples: Rows of the training set; needed with `surrogate`.
        training_residual: Gradient norm at which training stopped, at most; needed with `surrogate`.
        surrogate_distance: τ, total variation distance between the distributions of training and surrogate examples, at
            most; needed with `surrogate`.
        noise: `secret` takes every bit of it from the operating system. `seeded` draws it from the run's seed and makes
            the certificate conditional: the record names the seed, and whoever knows it can take the noise away again.
        epsilon_limit: Largest epsilon that is accepted. Default 10 (ours).

    Raises:
        SettingError: A value is out of range, or one that the source needs is missing.
    """

    needs: ClassVar = frozenset({Need.FORGET})
    tier: ClassVar = Tier.CERTIFIED
    tasks: ClassVar = (Classification,)
    paper: ClassVar = "Guo et al. 2020 (arXiv 1911.03030); Sekhari et al. 2021; Basaran et al. 2025 (arXiv 2506.06486)"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    curvature: Literal["state", "retain", "surrogate"] = "state"
    epsilon: float = 1.0
    delta: float | None = None
    sigma: float | None = None
    l2: float | None = None
    loss: HeadLoss | None = None
    feature_norm: float | None = None
    tolerance: float = 1e-4
    rebase: bool = False
    reference_residual: float | None = None
    solver_tolerance: float = 1e-10
    steps: int = 1
    training_examples: int | None = None
    training_residual: float | None = None
    surrogate_distance: float | None = None
    noise: Literal["secret", "seeded"] = "secret"
    epsilon_limit: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges, and that what the source needs is given."""
        require_one_of(self, "curvature", ("state", "retain", "surrogate"))
        require_one_of(self, "noise", ("secret", "seeded"))
        require_one_of(self, "rebase", (True, False))
        require_positive(self, "epsilon_limit")
        require_meaning(self.epsilon, self.epsilon_limit)
        require_one_of(self, "loss", (None, *HeadLoss))
        require_positive(self, "epsilon", "delta", "sigma", "l2", "feature_norm", "tolerance", "solver_tolerance")
        require_below(self, 1, "delta", "solver_tolerance")
        require_at_least(self, 0, "reference_residual", "training_residual", "surrogate_distance")
        require_whole(self, "steps", "training_examples")
        if self.training_examples == 1:
            raise SettingError("training_examples must be at least 2, not 1: of one row nothing is left to retrain on")
        if self.surrogate_distance is not None and self.surrogate_distance > 1:
            raise SettingError(f"surrogate_distance must be at most 1, not {self.surrogate_distance!r}")
        self._require_fitting()

    def require(self, problem: Problem) -> None:
        """Raise unless the problem holds what the source of the curvature needs."""
        super().require(problem)
        require_need(type(self).__name__, problem, Need(self.curvature))

    def apply(self, problem: Problem, run: Run) -> Forgotten:
        """Take the step, bound what is left, add noise, and say what that guarantees."""
        started = time.monotonic()
        known = self.training_examples if self.curvature == "surrogate" else None
        if known is not None:
            require_request(self.epsilon, self._delta(known), known)
        removal = self._remove(problem, run)
        delta = self._delta(removal.rows)
        require_request(self.epsilon, delta, removal.rows)
        needed = removal.bound.distance
        spent = None
        if self.sigma is None:
            sigma = gaussian_sigma(self.epsilon, delta - removal.failure, needed)
        else:
            budget = DeletionBudget(sigma=self.sigma, epsilon=self.epsilon, delta=delta - removal.failure)
            sigma, spent = self.sigma, budget.settle(needed).spent / budget.limit
        weights = removal.weights + sigma * self._draw(removal.weights, run)
        model = run.copy(problem.model)
        set_head_weights(head_of(model, cast(Classification, problem.task)), weights.to(run.device))
        state = None if removal.state is None else removal.state.bound_to(model)
        seconds = time.monotonic() - started
        run.phases.append(
            PhaseRecord(
                name="newton step",
                steps=removal.products,
                examples=removal.examples,
                seconds=seconds,
                peak_memory_bytes=int(psutil.Process().memory_info().rss),
            )
        )
        return Forgotten(model.eval(), self._certify(removal, delta, sigma, spent), state)

    def _remove(self, problem: Problem, run: Run) -> Removal:
        if self.curvature == "state":
            return by_state(problem, run, self.reference_residual, rebase=self.rebase)
        settings = HeadSettings(cast(float, self.l2), self.loss or HeadLoss.SOFTMAX, self.feature_norm, self.tolerance)
        objective = Objective(settings, self.solver_tolerance, self.reference_residual)
        if self.curvature == "retain":
            return by_retain(problem, run, objective, self.steps)
        examples = cast(int, self.training_examples)
        return by_surrogate(
            problem,
            run,
            objective,
            examples=examples,
            distance=cast(float, self.surrogate_distance),
            residual=cast(float, self.training_residual),
            failure=self._delta(examples) / 2,
        )

    def _certify(self, removal: Removal, delta: float, sigma: float, spent: float | None) -> Certificate:
        conditions = list(removal.conditions)
        if self.noise == "seeded":
            conditions.append("the seed is unpredictable and stays secret: whoever knows it can take the noise away")
        rebased = self.curvature == "state" and self.rebase
        not_covered = [_MODELS, _REBASED if rebased else _STATE, *_NOT_COVERED]
        if self.sigma is None:
            not_covered.append(_SCALE)
        reference = (
            f"retraining the head on {removal.fitted_to}, to a gradient norm of at most "
            f"{removal.bound.reference_residual:.3g} on the same objective, and adding independent Gaussian noise of "
            "the same sigma to each weight"
        )
        return Certificate(
            tier=tier_of(removal.constants, conditions),
            reference=reference,
            neighbours="the training set, and the training set without the "
            f"{_rows(removal.deleted)} deleted {removal.since}; either may be the likelier origin of a model by a "
            "factor of at most e^epsilon, but for delta",
            epsilon=self.epsilon,
            delta=delta,
            sigma=sigma,
            sensitivity=removal.bound.distance,
            residual=removal.bound.residual,
            constants=tuple(removal.constants),
            conditions=tuple(conditions),
            not_covered=tuple(not_covered),
            budget_spent=spent,
            budget_left=None if spent is None else 1 - spent,
        )

    def _draw(self, like: Tensor, run: Run) -> Tensor:
        """Standard Gaussian noise of the shape of `like`, the same in every process."""
        shape = tuple(like.shape)
        if self.noise == "seeded":
            return torch.from_numpy(np.random.default_rng(derive(run.seed, "newton noise")).standard_normal(shape))
        return torch.from_numpy(cast("list[Any]", broadcast_object_list([secret_gaussian(shape)]))[0])

    def _delta(self, rows: int) -> float:
        return rows**-2 if self.delta is None else self.delta

    def _require_fitting(self) -> None:
        """Refuse what the source of the curvature cannot do without, and what it would ignore."""
        objective = ("l2", "loss", "feature_norm")
        guessed = ("training_examples", "training_residual", "surrogate_distance")
        needed = {"state": (), "retain": ("l2",), "surrogate": ("l2", *guessed)}[self.curvature]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise SettingError(
                f"NewtonRemoval with curvature={self.curvature!r} needs {', '.join(missing)} to be given"
            )
        ignored = {"state": (*objective, *guessed), "retain": guessed, "surrogate": ()}[self.curvature]
        given = [name for name in ignored if getattr(self, name) is not None]
        if given:
            raise SettingError(
                f"NewtonRemoval with curvature={self.curvature!r} does not use {', '.join(given)}; leave it out"
            )


def _rows(count: int) -> str:
    return "row" if count == 1 else f"{count} rows"


_MODELS = "whoever holds the original model or a model released before: each knows the deleted rows"
_STATE = (
    "whoever holds the deletion state, before or after the request: it returns the row of a single deletion exactly; "
    "keep it like the data"
)
_REBASED = (
    "whoever holds the deletion state from before the request (destroy it), or the one after it together with all rows "
    "that are left: each returns the row of a single deletion; keep the state like the data"
)
_NOT_COVERED = (
    "several released models together, whose losses add up (see DeletionBudget.joint_epsilon)",
    "forget requests that were chosen after seeing a model's noise",
    "other copies of the deleted rows, and what else was computed from them",
    "rounding of floating-point numbers, in the step and in the noise",
    "the measured numbers of this certificate (step, remainder, residual, sensitivity, budget), which were computed "
    "from the deleted rows and have no noise on them: keep them to the owner of the data where that matters",
)
_SCALE = "sigma, which was chosen from the data; fix it beforehand where that matters"
