"""Logistic regression: fitted to a measured optimum, forgotten with a certificate."""

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression as PlainLogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge import Origin, Tier
from expunge.errors import (
    AlreadyForgottenError,
    BudgetError,
    LabelError,
    MissingNeedError,
    SettingError,
    UnknownRowError,
)
from expunge.estimators import LogisticRegression

WINE, KINDS = load_wine(return_X_y=True)
WINE = StandardScaler().fit_transform(WINE) / 4
NAMES = np.array(["barolo", "grignolino", "barbera"])[KINDS]
CANCER, HEALTH = load_breast_cancer(return_X_y=True)
CANCER = StandardScaler().fit_transform(CANCER) / 6

NOISELESS: dict[str, Any] = {"epsilon": 1e6, "delta": 1e-6, "epsilon_limit": 1e6}
"""So little privacy that the noise is far below the step."""


def clipped(X: np.ndarray, norm: float = 1.0) -> np.ndarray:
    wide = np.c_[X, np.ones(len(X))]
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide * np.minimum(1, norm / length)


def weights(model: LogisticRegression) -> np.ndarray:
    return np.c_[model.coef_, model.intercept_]


def distance(one: LogisticRegression, other: LogisticRegression) -> float:
    return float(np.linalg.norm(weights(one) - weights(other)))


@pytest.mark.parametrize(("l2", "norm"), [(0.01, 1.0), (1e-4, 3.0)])
def test_the_fit_is_scikit_learns_on_clipped_features(l2: float, norm: float) -> None:
    model = LogisticRegression(l2, feature_norm=norm).fit(WINE, NAMES)
    rows = clipped(WINE, norm)
    plain = PlainLogisticRegression(C=1 / (len(rows) * l2), fit_intercept=False, tol=1e-10, solver="newton-cg")
    plain.fit(rows, NAMES)
    assert np.allclose(weights(model), plain.coef_, atol=1e-5)
    assert np.allclose(model.predict_proba(WINE), plain.predict_proba(rows), atol=1e-6)
    assert model.score(WINE, NAMES) > 0.95
    assert not hasattr(model, "certificate_")


def test_the_residual_is_the_gradient_at_the_weights() -> None:
    model = LogisticRegression().fit(WINE, KINDS)
    rows, wanted = clipped(WINE), np.eye(3)[KINDS]
    gradient = (model.predict_proba(WINE) - wanted).T @ rows / len(rows) + 0.01 * weights(model)
    assert np.linalg.norm(gradient) <= 1.1e-10
    assert model.residual_ == pytest.approx(np.linalg.norm(gradient), abs=1e-14)


def test_forgetting_moves_to_the_fit_to_the_rest() -> None:
    for seed in range(20):
        gone = np.random.default_rng(seed).choice(len(WINE), 4, replace=False)
        kept = np.setdiff1d(np.arange(len(WINE)), gone)
        refit = LogisticRegression().fit(WINE[kept], KINDS[kept])
        before = LogisticRegression(**NOISELESS).fit(WINE, KINDS)
        after = clone(before).fit(WINE, KINDS).forget(indices=gone)
        assert distance(after, refit) < 0.1 * distance(before, refit)
        noise = after.certificate_.sigma * np.sqrt(weights(after).size) * 3
        assert distance(after, refit) <= after.certificate_.sensitivity + noise


def test_rows_and_positions_one_by_one_and_together_lead_to_the_same_place() -> None:
    together = LogisticRegression(**NOISELESS).fit(WINE, KINDS).forget(indices=[3, 30, 150])
    apart = LogisticRegression(**NOISELESS).fit(WINE, KINDS).forget(WINE[[150]], KINDS[[150]])
    apart.forget(indices=[3]).forget(WINE[[30]], KINDS[[30]])
    sigma = together.certificate_.sigma + apart.certificate_.sigma
    assert distance(together, apart) <= 5 * sigma * np.sqrt(weights(apart).size)


def test_noise_is_fresh_and_of_the_size_that_is_certified() -> None:
    draws = [LogisticRegression().fit(WINE, KINDS).forget(indices=[0]) for _ in range(12)]
    sigma = draws[0].certificate_.sigma
    assert all(draw.certificate_.sigma == pytest.approx(sigma) for draw in draws)
    spread = np.std([weights(draw) for draw in draws], axis=0, ddof=1)
    # 11 x 42 degrees of freedom: the mean square lies within 25 % of sigma² but once in ten thousand times.
    assert 0.75 < (spread**2).mean() / sigma**2 < 1.3


def test_the_certificate() -> None:
    model = LogisticRegression(epsilon=0.5).fit(WINE, NAMES).forget(indices=[1, 2])
    certificate = model.certificate_
    assert certificate.tier is Tier.CERTIFIED
    assert (certificate.epsilon, certificate.delta) == (0.5, len(WINE) ** -2)
    assert not [each for each in certificate.constants if each.origin is Origin.ASSUMED]
    assert {each.name: each.value for each in certificate.constants}["C"] == pytest.approx(1)
    assert not hasattr(model.fit(WINE, NAMES), "certificate_")


@pytest.mark.parametrize(("settings", "rebased"), [
    ({}, False), ({"keep_rows": False}, False), ({"rebase": True}, True), ({"keep_rows": False, "rebase": True}, True),
])  # fmt: skip
def test_the_state_is_rebased_on_request(settings: dict[str, Any], rebased: bool) -> None:
    model = LogisticRegression(**settings).fit(WINE, KINDS)
    for row in (0, 100):
        model.forget(WINE[[row]], KINDS[[row]])
    named = {each.name for each in model.certificate_.constants}
    assert ("moved" in named) is rebased
    assert any("all rows that are left" in each for each in model.certificate_.not_covered) is rebased


def test_a_fixed_sigma_runs_out() -> None:
    model = LogisticRegression(sigma=0.05).fit(WINE, KINDS)
    spent = [model.forget(indices=[row]).certificate_.budget_spent for row in range(3)]
    assert spent == sorted(spent)
    before = pickle.dumps(model)
    with pytest.raises(BudgetError, match="retrain"):
        model.forget(indices=range(3, 90))
    assert pickle.dumps(model) == before


def test_refusals_change_nothing() -> None:
    with pytest.raises(NotFittedError):
        LogisticRegression().forget(indices=[0])
    model = LogisticRegression().fit(WINE, NAMES).forget(indices=[0])
    before = pickle.dumps(model)
    for error, words, request in [
        (AlreadyForgottenError, "deleted before", {"indices": [0]}),
        (UnknownRowError, "no longer, among the", {"X": WINE[:1], "y": NAMES[:1]}),
        (UnknownRowError, "never in training", {"X": WINE[1:2] + 0.1, "y": NAMES[1:2]}),
        (LabelError, "none of the 3 classes", {"X": WINE[1:2], "y": ["rioja"]}),
        (ValueError, "NaN", {"X": WINE[1:2] * np.nan, "y": NAMES[1:2]}),
        (ValueError, "features, but", {"X": WINE[1:2, 1:], "y": NAMES[1:2]}),
    ]:
        with pytest.raises(error, match=words):
            model.forget(**request)
    assert pickle.dumps(model) == before
    with pytest.raises(SettingError, match="rebase must be one of True, False, not 'never'"):
        LogisticRegression(rebase="never").fit(WINE, KINDS)  # type: ignore[arg-type]
    bare = LogisticRegression(keep_rows=False).fit(WINE, KINDS)
    with pytest.raises(MissingNeedError, match="keeps no rows"):
        bare.forget(indices=[0])
    bare.forget(WINE[:1], KINDS[:1])
    with pytest.raises(SettingError, match="epsilon must be above 0"):
        LogisticRegression(epsilon=0.0).fit(WINE, KINDS)
    with pytest.raises(SettingError, match="delta"):
        LogisticRegression(delta=0.1).fit(WINE, KINDS).forget(indices=[0])
    with pytest.raises(ValueError, match=r"all .* rows are of one class"):
        LogisticRegression().fit(WINE[:9], KINDS[:9])


@pytest.mark.parametrize("name", ["l2", "feature_norm", "tolerance"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), None, "a"])
def test_settings_are_checked_before_anything_is_computed(name: str, value: Any) -> None:
    model = LogisticRegression(**{name: value})
    with pytest.raises(SettingError, match=f"{name} must be above 0"):
        model.fit(WINE, KINDS)
    assert not hasattr(model, "classes_")


def test_a_tolerance_that_is_asked_for_is_recorded() -> None:
    model = LogisticRegression(tolerance=0.05).fit(WINE, KINDS)
    assert 1e-4 < model.residual_ <= 0.05
    assert model.forget(indices=[0]).certificate_.sensitivity >= model.residual_ / model.l2


def test_rows_that_are_mostly_clipped_are_told() -> None:
    length = np.linalg.norm(WINE, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LogisticRegression(feature_norm=float(np.quantile(length, 0.75))).fit(WINE, KINDS)
    assert model.clipped_ == pytest.approx(0.25, abs=0.01)
    with pytest.warns(UserWarning, match=r"75% of the rows are longer than feature_norm .* divide the features"):
        model.set_params(feature_norm=float(np.quantile(length, 0.25))).fit(WINE, KINDS)
    assert model.clipped_ == pytest.approx(0.75, abs=0.01)


def test_pandas_pipelines_and_grid_searches() -> None:
    frame = pd.DataFrame(CANCER, columns=[f"feature {number}" for number in range(30)])
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(feature_norm=8.0)),
        {"logisticregression__l2": [1e-3, 1.0]},
        cv=3,
    )
    search.fit(frame, HEALTH)
    *steps, last = (step for _, step in search.best_estimator_.steps)
    assert search.best_score_ > 0.9
    assert last.l2 == 1e-3
    last.forget(steps[0].transform(frame.iloc[:2]), HEALTH[:2])
    assert last.certificate_.tier is Tier.CERTIFIED
    direct = LogisticRegression().fit(frame, HEALTH).forget(frame.iloc[:2], HEALTH[:2])
    assert direct.feature_names_in_.tolist() == list(frame.columns)
