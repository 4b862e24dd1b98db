"""Estimators agree with scikit-learn's after `fit`, and with a refit after `forget`."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as PlainRidge
from sklearn.linear_model import RidgeClassifier as PlainRidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB as PlainGaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from expunge import Tier
from expunge.errors import (
    AlreadyForgottenError,
    ForgetSetError,
    LabelError,
    MissingNeedError,
    SettingError,
    UnknownRowError,
)
from expunge.estimators import GaussianNB, Ridge, RidgeClassifier, ShardedClassifier

CANCER, HEALTH = load_breast_cancer(return_X_y=True)
PATIENTS, DISEASE = load_diabetes(return_X_y=True)
GROUPS = np.array(["low", "middle", "high"])[np.digitize(DISEASE, [100, 200])]

CASES: dict[str, tuple[Any, Any, np.ndarray, np.ndarray]] = {
    "Ridge": (Ridge(0.7), PlainRidge(0.7, solver="cholesky"), PATIENTS, DISEASE),
    "Ridge without intercept": (
        Ridge(0.7, fit_intercept=False),
        PlainRidge(0.7, fit_intercept=False, solver="cholesky"),
        PATIENTS,
        np.stack([DISEASE, DISEASE**0.5], 1),
    ),
    "RidgeClassifier of two": (
        RidgeClassifier(2.0), PlainRidgeClassifier(2.0, solver="cholesky"), PATIENTS, DISEASE > 150
    ),
    "RidgeClassifier of three": (RidgeClassifier(), PlainRidgeClassifier(solver="cholesky"), PATIENTS, GROUPS),
    "GaussianNB": (GaussianNB(), PlainGaussianNB(), PATIENTS, GROUPS),
    "GaussianNB of raw features": (GaussianNB(), PlainGaussianNB(), CANCER, HEALTH),
}  # fmt: skip

by_case = pytest.mark.parametrize("name", CASES)
LEARNED = ("coef_", "intercept_", "theta_", "var_", "class_prior_", "class_count_")


def off(one: Any, other: Any) -> float:
    """Largest difference of what two estimators learned, relative to the size of each attribute."""
    names = [name for name in LEARNED if hasattr(one, name) and hasattr(other, name)]
    assert names
    # Squeezed: for one target the axis of targets comes and goes between versions of scikit-learn.
    pairs = [(np.squeeze(getattr(one, name)), np.squeeze(getattr(other, name))) for name in names]
    assert all(first.shape == second.shape for first, second in pairs)
    return max(float(np.abs(first - second).max() / max(np.abs(second).max(), 1e-12)) for first, second in pairs)


def known_rows() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.normal(size=(60, 3)), np.repeat(["a", "b", "c"], 20)


@by_case
def test_fits_are_scikit_learns(name: str) -> None:
    mine, theirs, X, y = CASES[name]
    mine, theirs = clone(mine).fit(X, y), clone(theirs).fit(X, y)
    assert off(mine, theirs) <= 1e-8
    assert np.array_equal(mine.predict(X), theirs.predict(X)) or np.allclose(mine.predict(X), theirs.predict(X))
    if hasattr(theirs, "predict_proba"):
        assert np.allclose(mine.predict_proba(X), theirs.predict_proba(X), atol=1e-8)
    if hasattr(theirs, "decision_function"):
        assert np.allclose(mine.decision_function(X), theirs.decision_function(X), atol=1e-8)
    assert mine.score(X, y) == pytest.approx(theirs.score(X, y))
    assert not hasattr(mine, "certificate_")


@by_case
def test_forgetting_in_any_order_is_a_refit(name: str) -> None:
    estimator, _, X, y = CASES[name]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(X))
        model = clone(estimator).fit(X, y)
        for row in order[:60]:
            model.forget(indices=[row])
        model.forget(X[order[60:90]], y[order[60:90]])
        model.forget(indices=np.isin(np.arange(len(X)), order[90:100]))
        kept = np.sort(order[100:])
        refit = clone(estimator).fit(X[kept], y[kept])
        assert off(model, refit) <= 1e-10
        assert np.array_equal(model.predict(X), refit.predict(X))
        assert off(model, clone(estimator).fit(X, y)) > 1e-4


@by_case
def test_sums_are_enough(name: str) -> None:
    estimator, _, X, y = CASES[name]
    kept = clone(estimator).fit(X, y).forget(indices=range(9))
    bare = clone(estimator).set_params(keep_rows=False).fit(X, y)
    assert not any(value is X for value in vars(bare).values())
    largest = max(len(np.asarray(value.sums[each].high)) for value in [bare._statistics] for each in value.sums)
    assert largest < len(X), "nothing of the size of the data but digests"
    with pytest.raises(MissingNeedError, match=r"keeps no rows .*forget\(X\[indices\], y\[indices\]\)"):
        bare.forget(indices=[0])
    assert off(bare.forget(X[:9], y[:9]), kept) == 0


@by_case
def test_the_certificate(name: str) -> None:
    estimator, _, X, y = CASES[name]
    model = clone(estimator).fit(X, y)
    assert model.forget(indices=[3, 4]) is model
    certificate = model.certificate_
    assert certificate.tier is Tier.EXACT
    assert [each.value for each in certificate.constants] == [2, len(X) - 2]
    assert any("before and after" in text for text in certificate.not_covered)
    assert not hasattr(model.fit(X, y), "certificate_")


@by_case
def test_refusals_change_nothing(name: str) -> None:
    estimator, _, X, y = CASES[name]
    with pytest.raises(NotFittedError):
        clone(estimator).forget(indices=[0])
    model = clone(estimator).fit(X, y).forget(indices=[0])
    before = pickle.dumps(model)
    for error, words, request in [
        (AlreadyForgottenError, "deleted before", {"indices": [0, 1]}),
        (UnknownRowError, "no longer, among the", {"X": X[:1], "y": y[:1]}),
        (UnknownRowError, "never in training", {"X": X[1:2] + 1, "y": y[1:2]}),
        (ForgetSetError, "outside the dataset", {"indices": [len(X)]}),
        (ForgetSetError, "the mask has 3 entries", {"indices": np.array([True, False, True])}),
        (ForgetSetError, "must be whole numbers", {"indices": [0.5]}),
        (ForgetSetError, "is everything that", {"X": X[1:], "y": y[1:]}),
        (SettingError, "indices is empty", {"indices": []}),
        (SettingError, "in one way", {}),
        (SettingError, "in one way", {"X": X[1:2], "y": y[1:2], "indices": [1]}),
        (MissingNeedError, "pass both", {"X": X[1:2]}),
        (ValueError, r"features, but .* is expecting", {"X": X[1:2, 1:], "y": y[1:2]}),
        (ValueError, "NaN", {"X": X[1:2] * np.nan, "y": y[1:2]}),
    ]:
        with pytest.raises(error, match=words):
            model.forget(**request)
    assert pickle.dumps(model) == before


@pytest.mark.parametrize(
    "estimator", [RidgeClassifier(), GaussianNB(), ShardedClassifier(PlainGaussianNB(), n_shards=2)]
)
def test_a_class_that_is_forgotten_is_no_longer_predicted(estimator: Any) -> None:
    X, y = known_rows()
    model = clone(estimator).fit(X, y).forget(X[y == "b"], y[y == "b"])
    assert model.classes_.tolist() == ["a", "c"]
    assert set(model.predict(X)) == {"a", "c"}
    if not isinstance(model, ShardedClassifier):
        assert off(model, clone(estimator).fit(X[y != "b"], y[y != "b"])) <= 1e-10
    with pytest.raises(LabelError, match="are none of the 3 classes"):
        model.forget(X[:1], ["d"])
    if isinstance(model, RidgeClassifier):
        with pytest.raises(ForgetSetError, match="only one class would be left"):
            model.forget(X[y == "a"], y[y == "a"])
        with pytest.raises(ValueError, match="all 20 rows are of one class"):
            clone(estimator).fit(X[:20], y[:20])


def test_equal_rows_are_forgotten_one_by_one() -> None:
    X, y = np.repeat([[0.0, 1.0], [2.0, 1.0], [3.0, 5.0]], 2, axis=0), np.array([0.0, 0, 1, 1, 5, 5])
    model = Ridge().fit(X, y).forget(X[:1], y[:1])
    assert off(model, Ridge().fit(X[1:], y[1:])) <= 1e-10
    model.forget(X[:1], y[:1])
    with pytest.raises(UnknownRowError):
        model.forget(X[:1], y[:1])
    model.forget(indices=[4])
    assert off(model, Ridge().fit(X[[2, 3, 5]], y[[2, 3, 5]])) <= 1e-10


@by_case
def test_pandas(name: str) -> None:
    estimator, _, X, y = CASES[name]
    frame = pd.DataFrame(
        X, columns=[f"feature {number}" for number in range(X.shape[1])], index=range(1000, 1000 + len(X))
    )
    target = pd.DataFrame(y, index=frame.index) if y.ndim == 2 else pd.Series(y, index=frame.index)
    model = clone(estimator).fit(frame, target).forget(frame.iloc[5:8], target.iloc[5:8])
    assert model.feature_names_in_.tolist() == list(frame.columns)
    assert model.n_features_in_ == X.shape[1]
    kept = np.r_[:5, 8 : len(X)]
    assert off(model, clone(estimator).fit(X[kept], y[kept])) <= 1e-10
    with pytest.raises(ValueError, match="feature names"):
        model.forget(frame.iloc[:1, ::-1], target.iloc[:1])


def test_through_a_pipeline() -> None:
    pipeline = make_pipeline(StandardScaler(), RidgeClassifier()).fit(CANCER, HEALTH)
    *steps, last = (step for _, step in pipeline.steps)
    before = copy.deepcopy(steps[0].mean_)
    last.forget(pipeline[:-1].transform(CANCER[:4]), HEALTH[:4])
    scaled = steps[0].transform(CANCER)
    assert off(last, RidgeClassifier().fit(scaled[4:], HEALTH[4:])) <= 1e-10
    assert np.array_equal(steps[0].mean_, before), "what the scaler learned stays, as the certificate says"
    assert any("preprocessing" in text for text in last.certificate_.not_covered)


def test_through_a_step_that_rounds_differently_row_by_row() -> None:
    pipeline = make_pipeline(StandardScaler(), PCA(10), RidgeClassifier()).fit(CANCER, HEALTH)
    rows = pipeline[:-1].transform(CANCER)
    pipeline[-1].forget(indices=range(4))
    assert off(pipeline[-1], RidgeClassifier().fit(rows[4:], HEALTH[4:])) <= 1e-10


def test_in_a_grid_search() -> None:
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 100.0]}, cv=3)
    search.fit(PATIENTS, DISEASE)
    best = search.best_estimator_[-1]
    assert best.alpha == search.best_params_["ridge__alpha"]
    scaled = search.best_estimator_[:-1].transform(PATIENTS)
    best.forget(indices=[0])
    assert off(best, Ridge(best.alpha).fit(scaled[1:], DISEASE[1:])) <= 1e-10


def shards_afresh(model: ShardedClassifier, kept: np.ndarray, X: np.ndarray, y: np.ndarray) -> list[Any]:
    """What each shard gives when its rows that are kept are fitted without any forgetting."""
    fitted: list[Any] = []
    for shard in range(model.n_shards):
        rows = kept[model.shards_[kept] == shard]
        member = clone(model.estimator)
        if "random_state" in member.get_params():
            member.set_params(random_state=model.estimators_[shard].random_state)
        fitted.append(member.fit(X[rows], y[rows]))
    return fitted


@pytest.mark.parametrize("aggregation", ["mean", "vote"])
@pytest.mark.parametrize("member", [PlainGaussianNB(), LogisticRegression(max_iter=3000), DecisionTreeClassifier()])
def test_shards_are_those_fitted_to_the_rest(member: Any, aggregation: str) -> None:
    X, y = PATIENTS, GROUPS
    model = ShardedClassifier(member, n_shards=4, aggregation=aggregation, random_state=3).fit(X, y)
    assert model.score(X, y) > 0.5
    before = list(model.estimators_)
    model.forget(indices=[7, 80]).forget(X[[200]], y[[200]])
    kept = np.setdiff1d(np.arange(len(X)), [7, 80, 200])
    touched = set(model.shards_[[7, 80, 200]])
    for shard, expected in enumerate(shards_afresh(model, kept, X, y)):
        assert np.array_equal(model.estimators_[shard].predict_proba(X), expected.predict_proba(X))
        assert (model.estimators_[shard] is before[shard]) == (shard not in touched)
    assert np.allclose(model.predict_proba(X).sum(1), 1)
    with pytest.raises(AlreadyForgottenError):
        model.forget(indices=[80])
    with pytest.raises(UnknownRowError):
        model.forget(X[[200]], y[[200]])
    with pytest.raises(UnknownRowError):
        model.forget(X[[1]] + 1, y[[1]])
    assert [each.name for each in model.certificate_.constants] == ["deleted rows", "rows left", "retrained shards"]


def test_places_do_not_depend_on_the_rows() -> None:
    X, y = known_rows()
    first = ShardedClassifier(PlainGaussianNB(), random_state=1).fit(X, y).shards_
    other = ShardedClassifier(PlainGaussianNB(), random_state=1).fit(X[:40] * 5, y[20:]).shards_
    assert np.array_equal(first[:40], other)
    assert not np.array_equal(first, ShardedClassifier(PlainGaussianNB(), random_state=2).fit(X, y).shards_)


def test_few_rows_in_many_shards() -> None:
    X, y = known_rows()
    model = ShardedClassifier(PlainGaussianNB(), n_shards=40, random_state=0).fit(X, y)
    assert any(member is None for member in model.estimators_)
    assert model.predict_proba(X).shape == (60, 3)
    for shard in np.unique(model.shards_)[:3]:
        model.forget(indices=np.flatnonzero(model.shards_ == shard))
        assert model.estimators_[shard] is None
    with pytest.raises(ForgetSetError, match="everything that the estimator holds"):
        model.forget(indices=model._rows.positions)


SETTINGS: list[tuple[Callable[[], Any], str]] = [
    (lambda: Ridge(-1.0), "penalty must be at least 0"),
    (lambda: GaussianNB(var_smoothing=-1.0), "smoothing must be at least 0"),
    (lambda: ShardedClassifier(PlainGaussianNB(), n_shards=0), "n_shards must be a whole number of at least 1, not 0"),
    (lambda: ShardedClassifier(PlainGaussianNB(), aggregation="median"), "aggregation must be 'mean' or 'vote'"),
    (lambda: ShardedClassifier(PlainRidgeClassifier()), "RidgeClassifier gives no probabilities"),
]


@pytest.mark.parametrize(("make", "words"), SETTINGS, ids=[words for _, words in SETTINGS])
def test_settings_that_cannot_be(make: Callable[[], Any], words: str) -> None:
    X, y = known_rows()
    with pytest.raises(SettingError, match=words):
        make().fit(X, np.unique(y, return_inverse=True)[1])
