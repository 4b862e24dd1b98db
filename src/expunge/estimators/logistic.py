"""Logistic regression that forgets with a certificate."""

import warnings
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge.errors import ExpungeWarning
from expunge.estimators._rows import Indices, Request, RowStore, codes, numbers, read_again, read_labelled
from expunge.methods import NewtonRemoval
from expunge.networks import ClippedFeatures
from expunge.privacy import Certificate
from expunge.problem import Problem
from expunge.settings import require_positive
from expunge.states import CurvatureState, HeadLoss, fit_head, head_rows
from expunge.states.head import head_weights, set_head_weights
from expunge.tasks import Classification
from expunge.training import Execution
from expunge.unlearning import unlearn

Floats = NDArray[np.float64]

_RECORDED = 1e-4
"""Gradient norm above which a fit is not recorded as an optimum, unless a larger tolerance was asked for."""

_MOST = 0.5
"""Share of clipped rows above which `fit` warns."""


class LogisticRegression(ClassifierMixin, BaseEstimator):
    """Softmax regression on clipped features whose `forget` is (epsilon, delta)-certified (`NewtonRemoval`).

    It minimises the mean cross-entropy plus (l2/2) times the squared weights, those of the constant included, in
    float64 until the gradient's norm is at most `tolerance`. Every row gets a constant 1 and is then scaled down to a
    norm of at most `feature_norm`, at `fit` and at `predict`: scale features first, so that not all rows are clipped.

    `forget` needs no other rows. It adds fresh noise, so that the result differs from call to call; until the first
    `forget` there is none. Classes stay as they were fitted, also when all rows of one are forgotten.

    Args:
        l2: Strength of the penalty, which makes the optimum unique; more of it needs less noise.
        feature_norm: Largest norm of a row.
        epsilon: Privacy loss of `forget`.
        delta: Probability with which the loss may be larger; 1/n² by default.
        sigma: Standard deviation of the noise, fixed beforehand; by default the least that is needed. A request that
            needs more than a fixed one is refused (`BudgetError`): fit anew.
        epsilon_limit: Largest epsilon that is accepted.
        tolerance: Gradient norm at which fitting stops.
        keep_rows: Keep the rows, so that they can be forgotten by position. Without them the estimator holds sums and
            keyed digests only.
        rebase: Whether `forget` leaves a state that no longer returns the forgotten rows, at the price of more noise
            from the second call on (`NewtonRemoval`). Use it with `keep_rows=False`: beside the rows that are left, the
            state gives the forgotten ones away all the same.

    Attributes:
        classes_: (classes,).
        coef_: (classes, features) weights on clipped features.
        intercept_: (classes,) weight of the constant.
        residual_: Gradient norm at which fitting stopped, as measured.
        clipped_: Share of the rows that are longer than `feature_norm` without their constant; little but the direction
            is left of those.
        certificate_: What is guaranteed of the last deletion; there is none before one.
    """

    classes_: NDArray[Any]
    coef_: Floats
    intercept_: Floats
    residual_: float
    clipped_: float
    certificate_: Certificate

    def __init__(
        self,
        l2: float = 0.01,
        *,
        feature_norm: float = 1.0,
        epsilon: float = 1.0,
        delta: float | None = None,
        sigma: float | None = None,
        epsilon_limit: float = 10.0,
        tolerance: float = 1e-10,
        keep_rows: bool = True,
        rebase: bool = False,
    ) -> None:
        self.l2 = l2
        self.feature_norm = feature_norm
        self.epsilon = epsilon
        self.delta = delta
        self.sigma = sigma
        self.epsilon_limit = epsilon_limit
        self.tolerance = tolerance
        self.keep_rows = keep_rows
        self.rebase = rebase

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows (rows, features) and labels (rows,).

        Raises:
            ValueError: The data are not what scikit-learn takes, or all of one class.
            SettingError: A setting is out of range.
            ConvergenceError: The tolerance is not reached, which rounding may prevent.

        Warns:
            UserWarning: More than half of the rows are clipped.
        """
        _Objective(self.l2, self.feature_norm, self.tolerance)  # refuse settings before anything is computed
        self._removal()
        inputs, labels = read_labelled(self, X, y)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise ValueError(f"all {len(labels)} rows are of one class; add rows of another class")
        targets = numbers(codes(labels, classes))
        model = nn.Sequential(
            ClippedFeatures(self.feature_norm),
            nn.Linear(inputs.shape[1] + 1, len(classes), bias=False, dtype=torch.double),
        )
        task, data = Classification(len(classes)), _dataset(inputs, targets)
        head = cast(nn.Linear, model[1])
        fitted = fit_head(head_rows(model, task, data, HeadLoss.SOFTMAX), self.l2, tolerance=self.tolerance)
        set_head_weights(head, fitted)
        state = CurvatureState.record(
            model.eval(),
            task,
            data,
            l2=self.l2,
            feature_norm=self.feature_norm,
            tolerance=max(_RECORDED, self.tolerance),
        )
        self.classes_, self.residual_ = classes, state.residual
        self.clipped_ = float((torch.linalg.vector_norm(inputs, dim=1) > self.feature_norm).double().mean())
        if self.clipped_ > _MOST:
            warnings.warn(
                f"{self.clipped_:.0%} of the rows are longer than feature_norm ({self.feature_norm:g}) and were scaled "
                "down to it, so that little but their direction was learned from; divide the features by a constant, "
                "or raise feature_norm at the price of more noise",
                ExpungeWarning,
                stacklevel=2,
            )
        self._store = RowStore.of(inputs, targets, state.rows) if self.keep_rows else None
        self._take(model, state)
        self.__dict__.pop("certificate_", None)
        return self

    def forget(self, X: Any = None, y: Any = None, *, indices: Indices | None = None) -> Self:
        """Forget rows: one Newton step away from them, and noise that hides what is left.

        Args:
            X: The rows, (rows, features), exactly as they were given to `fit`; with
            y: their labels. Or
            indices: positions of the rows in the data given to `fit`, or a mask over them; this needs `keep_rows`.

        Returns:
            The estimator itself, with `certificate_` set.

        Raises:
            UnknownRowError: A row was never fitted to, or was forgotten before.
            AlreadyForgottenError: A row that is named by its position was forgotten before.
            ForgetSetError: Nothing would be left.
            BudgetError: A fixed `sigma` is too small for this request.
            SettingError: epsilon or delta cannot be used for so many rows.
        """
        check_is_fitted(self)
        request = Request.read(X, y, indices, self._store, self._asked)
        forget = _dataset(request.inputs, request.targets)
        problem = Problem(self._model, Classification(len(self.classes_)), forget=forget, state=self._state)
        result = unlearn(problem, self._removal(), execution=Execution(progress=False))
        if self._store is not None:
            self._store = self._store.without(request.places_in(self._store, self._state.rows))
        self._take(result.model.cpu(), cast(CurvatureState, result.state))
        self.certificate_ = cast(Certificate, result.record.certificate)
        return self

    def predict_log_proba(self, X: Any) -> Floats:
        """Logarithms of the probabilities of the classes: (rows, classes)."""
        check_is_fitted(self)
        rows = numbers(validate_data(self, X, reset=False))
        with torch.no_grad():
            return self._model(rows).log_softmax(1).numpy()

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities of the classes: (rows, classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class: (rows,)."""
        best = self.predict_log_proba(X).argmax(1)
        return self.classes_[best]

    def _asked(self, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = read_again(self, X, y)
        return inputs, numbers(codes(labels, self.classes_))

    def _removal(self) -> NewtonRemoval:
        return NewtonRemoval(
            epsilon=self.epsilon,
            delta=self.delta,
            sigma=self.sigma,
            epsilon_limit=self.epsilon_limit,
            rebase=self.rebase,
        )

    def _take(self, model: nn.Module, state: CurvatureState) -> None:
        weights = cast(Floats, head_weights(cast(nn.Linear, cast(nn.Sequential, model)[1])).numpy())
        self._model, self._state = model, state
        self.coef_, self.intercept_ = weights[:, :-1], weights[:, -1]


@dataclass(frozen=True)
class _Objective:
    """What is checked of the settings that `NewtonRemoval` does not check."""

    l2: float
    feature_norm: float
    tolerance: float

    def __post_init__(self) -> None:
        require_positive(self, "l2", "feature_norm", "tolerance")


def _dataset(inputs: Tensor, targets: Tensor) -> TensorDataset:
    return TensorDataset(inputs, targets[:, 0].long())
