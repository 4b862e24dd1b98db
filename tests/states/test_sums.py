"""Sufficient statistics: what is taken away leaves what a fit to the rest gives, whatever the order and the size."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import expunge
from attacker import confirms
from expunge import Classification, Regression
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
    UnknownRowError,
    UnsupportedTaskError,
)
from expunge.networks import GaussianNaiveBayes, mlp
from expunge.states import (
    ClassMoments,
    ClosedForm,
    DiscriminantStatistics,
    NaiveBayesStatistics,
    RidgeStatistics,
    SufficientStatistics,
    load_state,
    save_state,
)

ROWS, FEATURES, CLASSES = 240, 5, 3

KINDS: dict[str, Callable[[Tensor, Tensor], SufficientStatistics]] = {
    "ridge": lambda x, t: RidgeStatistics.of(x, t, penalty=0.5),
    "ridge without intercept": lambda x, t: RidgeStatistics.of(x, t, penalty=0.5, intercept=False),
    "ridge of classes": lambda x, t: RidgeStatistics.of(x, t, penalty=0.5, classes=True),
    "naive Bayes": NaiveBayesStatistics.of,
    "lda": DiscriminantStatistics.of,
    "lda shrunk": lambda x, t: DiscriminantStatistics.of(x, t, shrinkage=0.1),
}

by_kind = pytest.mark.parametrize("kind", KINDS)


def rows(seed: int = 0, *, mean: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Clouds that overlap, and one column a class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, CLASSES, ROWS)
    inputs = draw.normal(size=(ROWS, FEATURES)) + 0.7 * labels[:, None] * np.arange(FEATURES)
    targets = np.eye(CLASSES)[labels]
    return torch.from_numpy(mean + scale * inputs), torch.from_numpy(targets)


def worst(one: SufficientStatistics, other: SufficientStatistics) -> float:
    """Largest difference between two fits, relative to the size of the parameter."""
    first, second = one.solve(), other.solve()
    return max(float((first[name] - second[name]).abs().max() / second[name].abs().max()) for name in second)


SIZES = [(0.0, 1.0), (1e6, 1.0), (-1e8, 3.0), (0.0, 1e-6)]


@pytest.mark.parametrize(
    ("kind", "mean", "scale"),
    # Without an intercept a mean of 1e8 leaves no one fit in float64; that is refused (below), not computed.
    [(kind, *size) for kind in KINDS for size in SIZES if (kind, size[0]) != ("ridge without intercept", -1e8)],
)
def test_many_deletions_in_any_order_equal_a_refit(kind: str, mean: float, scale: float) -> None:
    x, t = rows(mean=mean, scale=scale)
    held = KINDS[kind](x, t)
    for seed in range(2):
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
        left = held
        for row in order[:50]:
            left = left.without(x[row : row + 1], t[row : row + 1])
        left = left.without(x[order[50:180]], t[order[50:180]])
        assert worst(left, KINDS[kind](x[order[180:]], t[order[180:]])) <= 1e-10
        assert worst(left, held) > 1e-3, "the deletions matter"


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6, 1e8])
def test_deletions_agree_with_a_fit_about_the_mean(mean: float) -> None:
    x, t = rows(mean=mean)
    left = RidgeStatistics.of(x, t, penalty=0.5)
    for row in range(100):
        left = left.without(x[row : row + 1], t[row : row + 1])
    off, wanted = x[100:] - x[100:].mean(0), t[100:] - t[100:].mean(0)
    reference = torch.linalg.solve(off.T @ off + 0.5 * torch.eye(FEATURES), off.T @ wanted).T
    assert float((left.solve()["weight"] - reference).abs().max() / reference.abs().max()) <= 1e-12
    constant = torch.cat([x, torch.ones(ROWS, 1)], 1)
    plain = constant.T @ constant
    for row in constant[:100]:
        plain = plain - row[:, None] * row
    scatter = plain[:-1, :-1] - plain[:-1, -1:] * plain[-1:, :-1] / plain[-1, -1]
    lost = float((scatter - off.T @ off).abs().max() / (off.T @ off).abs().max())
    assert (lost > 1e-10) == (mean > 0), "sums in float64 would not do"


@by_kind
def test_the_sums_themselves_are_those_of_the_rest(kind: str) -> None:
    x, t = rows(mean=1e6)
    left, fresh = KINDS[kind](x, t).without(x[:200], t[:200]), KINDS[kind](x[200:], t[200:])
    for name, total in left.sums.items():
        assert torch.equal(total.value, fresh.sums[name].value), "to the last bit"


@by_kind
def test_an_outlier_leaves_no_trace(kind: str) -> None:
    x, t = rows()
    x[0] = 999_999_999.0
    assert worst(KINDS[kind](x, t).without(x[:1], t[:1]), KINDS[kind](x[1:], t[1:])) <= 1e-10


@by_kind
def test_an_outlier_that_left_a_trace_is_refused(kind: str) -> None:
    x, t = rows()
    for exponent in range(8, 31):
        far = x.clone()
        far[7, 1] = 10.0**exponent
        held = KINDS[kind](far, t)
        digest = held.digest()
        rest = torch.arange(ROWS) != 7
        if exponent <= 10:
            assert worst(held.without(far[7:8], t[7:8]), KINDS[kind](far[rest], t[rest])) <= 1e-10
            continue
        with pytest.raises(LostPrecisionError, match="cannot be taken out exactly"):
            held.without(far[7:8], t[7:8])
        assert held.digest() == digest
        held.without(far[9:10], t[9:10])  # other rows still can be


@pytest.mark.parametrize("size", [1e12, 1e14, 1e18, 1e20, 1e24, 1e30])
def test_an_outlier_among_targets(size: float) -> None:
    x, _ = rows()
    y = (x @ torch.arange(1.0, FEATURES + 1, dtype=torch.double))[:, None]
    y[7] = size
    held = RidgeStatistics.of(x, y)
    rest = torch.arange(ROWS) != 7
    if size > 1e20:
        with pytest.raises(LostPrecisionError):
            held.without(x[7:8], y[7:8])
    else:
        assert worst(held.without(x[7:8], y[7:8]), RidgeStatistics.of(x[rest], y[rest])) <= 1e-10


def test_what_only_the_deleted_rows_had_can_be_taken_out() -> None:
    x, t = rows()
    x[:, 2] = 0
    x[7, 2] = 1.0  # a rare category
    y = torch.zeros(ROWS, 1, dtype=torch.double)
    y[7] = 5.0
    rest = torch.arange(ROWS) != 7
    for kind in ("ridge", "naive Bayes"):
        assert worst(KINDS[kind](x, t).without(x[7:8], t[7:8]), KINDS[kind](x[rest], t[rest])) <= 1e-10
    assert not RidgeStatistics.of(x, y).without(x[7:8], y[7:8]).solve()["weight"].any()
    assert not ClassMoments.of(x, t).without(x[7:8], t[7:8]).covariances[:, 2].any()
    few, classes = x[[7, 8, 9]], torch.eye(3, dtype=torch.double)
    assert ClassMoments.of(few, classes).without(few[1:2], classes[1:2]).counts.tolist() == [1, 0, 1]


def test_moments_refuse_an_outlier() -> None:
    x, t = rows()
    x[7, 1] = 1e20
    with pytest.raises(LostPrecisionError):
        ClassMoments.of(x, t).without(x[7:8], t[7:8])


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_is_scikit_learns(intercept: bool) -> None:
    x, t = rows(mean=2.0)
    y = x[:, :2] @ torch.tensor([[1.0, 2.0], [0.3, -1.0]]).double() + t[:, :2]
    found = RidgeStatistics.of(x, y, penalty=3.0, intercept=intercept).solve()
    known = Ridge(alpha=3.0, fit_intercept=intercept, solver="cholesky").fit(x.numpy(), y.numpy())
    assert np.allclose(found["weight"], known.coef_, rtol=0, atol=1e-10)
    assert not intercept or np.allclose(found["bias"], known.intercept_, rtol=0, atol=1e-10)
    classes = RidgeStatistics.of(x, t, penalty=3.0, intercept=intercept, classes=True).solve()
    known = RidgeClassifier(alpha=3.0, fit_intercept=intercept, solver="cholesky").fit(x.numpy(), t.argmax(1).numpy())
    assert np.allclose(classes["weight"], known.coef_, rtol=0, atol=1e-10)


def test_naive_bayes_is_scikit_learns() -> None:
    x, t = rows(mean=2.0)
    found = NaiveBayesStatistics.of(x, t, smoothing=1e-3).solve()
    known = GaussianNB(var_smoothing=1e-3).fit(x.numpy(), t.argmax(1).numpy())
    assert np.allclose(found["means"], known.theta_, rtol=0, atol=1e-10)
    assert np.allclose(found["variances"], known.var_, rtol=0, atol=1e-10)
    model = ClosedForm(
        lambda: GaussianNaiveBayes(FEATURES, CLASSES), Classification(CLASSES), "naive-bayes", {"smoothing": 1e-3}
    )(TensorDataset(x, t.argmax(1)), 0)
    assert np.allclose(model(x).softmax(1).detach(), known.predict_proba(x.numpy()), atol=1e-10)


def test_the_discriminant_is_scikit_learns() -> None:
    x, t = rows(mean=2.0)
    found = DiscriminantStatistics.of(x, t).solve()
    known = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), t.argmax(1).numpy())
    assert np.allclose(found["weight"], known.coef_, rtol=0, atol=1e-8)
    assert np.allclose(found["bias"], known.intercept_, rtol=0, atol=1e-8)


@by_kind
def test_whoever_has_the_file_cannot_confirm_a_deleted_row(kind: str, tmp_path: Path) -> None:
    x, t = rows()
    held = KINDS[kind](x, t)
    save_state(held, tmp_path)
    assert confirms(tmp_path, x[:1], t[:1]), "the attack works on a row that is there"
    save_state(held.without(x[:2], t[:2]), tmp_path)
    assert not confirms(tmp_path, x[:1], t[:1])
    assert confirms(tmp_path, x[2:3], t[2:3])
    left = load_state(tmp_path)
    assert isinstance(left, SufficientStatistics)
    refusals = set[str]()
    for deleted_or_stranger in (x[:1], x[:1] + 1):
        with pytest.raises(UnknownRowError) as refused:
            left.without(deleted_or_stranger, t[:1])
        refusals.add(str(refused.value))
    assert len(refusals) == 1, "neither do words tell one from the other"


@by_kind
def test_rows_that_cannot_be_taken_away(kind: str) -> None:
    x, t = rows()
    held = KINDS[kind](x, t)
    before = held.digest()
    with pytest.raises(UnknownRowError):
        held.without(x[:2] + 1e-9, t[:2])
    with pytest.raises(UnknownRowError):
        held.without(x[:1], t[:1].roll(1, 1))
    with pytest.raises(UnknownRowError):
        held.without(x[[0, 0]], t[[0, 0]])
    with pytest.raises(UnknownRowError, match=r"not, or no longer, among the .* were deleted before"):
        held.without(x[:1], t[:1]).without(x[:1], t[:1])
    with pytest.raises(ShapeError, match="have 4 features and 3 columns of targets, where 5 and 3 were recorded"):
        held.without(x[:1, :4], t[:1])
    with pytest.raises(NonFiniteDataError):
        held.without(x[:1] * torch.nan, t[:1])
    with pytest.raises(ForgetSetError, match="discard the model instead"):
        held.without(x, t)
    assert held.digest() == before


def test_a_class_without_rows_is_never_predicted() -> None:
    x, t = rows()
    gone = t[:, 1] == 1
    for kind in ("naive Bayes", "lda"):
        left, fresh = KINDS[kind](x, t).without(x[gone], t[gone]), KINDS[kind](x[~gone], t[~gone])
        assert worst(left, fresh) == 0
        assert all(bool(torch.isfinite(value).all()) for value in left.solve().values())
    assert float(KINDS["lda"](x[~gone], t[~gone]).solve()["bias"][1]) == -1e4


def test_systems_without_one_solution() -> None:
    x, t = rows()
    twice = torch.cat([x, x[:, :1]], 1)
    with pytest.raises(
        CurvatureError, match=r"the scatter of 240 rows with penalty 0 is singular.*use a larger penalty"
    ):
        RidgeStatistics.of(twice, t, penalty=0.0).solve()
    RidgeStatistics.of(twice, t, penalty=1e-3).solve()
    RidgeStatistics.of(x * torch.tensor([1e-6, 1, 1, 1, 1e6]), t, penalty=0.0).solve()
    far, columns = rows(mean=-1e8)
    with pytest.raises(CurvatureError, match="use a larger penalty"):
        RidgeStatistics.of(far, columns, penalty=0.5, intercept=False).solve()
    with pytest.raises(CurvatureError, match="the pooled covariance of 240 rows is singular"):
        DiscriminantStatistics.of(twice, t).solve()
    with pytest.raises(CurvatureError, match="does not vary within a class"):
        NaiveBayesStatistics.of(torch.ones(4, 1), torch.eye(2).repeat(2, 1)).solve()
    with pytest.raises(DataError, match=r"a number is larger than 1e\+100"):
        RidgeStatistics.of(x * 1e101, t)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "ridge": (lambda: nn.Linear(FEATURES, CLASSES, dtype=torch.double), {"penalty": 2.0}),
    "naive-bayes": (lambda: GaussianNaiveBayes(FEATURES, CLASSES), {"smoothing": 1e-6}),
    "lda": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES)), {"shrinkage": 0.2}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_recorded_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    (x, t), (build, settings) = rows(), MODELS[kind]
    data, task = TensorDataset(x, t.argmax(1)), Classification(CLASSES)
    model = ClosedForm(build, task, kind, settings)(data, 0)
    state = expunge.record(model, task, data, kind=kind, **settings)
    assert isinstance(state, SufficientStatistics)
    state.require_model(model)
    path = expunge.save_state(state, tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    loaded = expunge.load_state(tmp_path)
    assert type(loaded) is type(state)
    assert loaded.digest() == state.digest()
    assert (
        dataclasses.replace(loaded).options()
        == state.options()
        != type(state)(state.sums, state.rows, state.shape, "").options()
    )
    assert worst(loaded.without(x[:9], t[:9]), state.without(x[:9], t[:9])) == 0
    with pytest.raises(StateError, match="belongs to another model"):
        loaded.require_model(ClosedForm(build, task, kind, settings)(TensorDataset(x[1:], t[1:].argmax(1)), 0))
    with pytest.raises(ModelError, match=r"differs from the fit to these data by .*fit it with the same settings"):
        expunge.record(build(), task, data, kind=kind, **settings)
    with pytest.raises(SavedModelError, match="lacks sums"):
        type(state).restore(
            {name: each for name, each in state.tensors().items() if "s.high" not in name}, state.notes()
        )


def test_models_tasks_and_settings_of_another_kind() -> None:
    x, t = rows()
    data, task = TensorDataset(x, t.argmax(1)), Classification(CLASSES)
    with pytest.raises(ModelError, match=r"of a model that is one Linear layer .*not of Sequential"):
        expunge.record(mlp(FEATURES, CLASSES), task, data, kind="ridge")
    with pytest.raises(ModelError, match=r"GaussianNaiveBayes`, not of Linear"):
        expunge.record(nn.Linear(FEATURES, CLASSES), task, data, kind="naive-bayes")
    with pytest.raises(ModelError, match="has an intercept; build the layer with a bias"):
        expunge.record(nn.Linear(FEATURES, CLASSES, bias=False), task, data, kind="lda")
    with pytest.raises(ModelError, match=r"weight has shape \(3, 4\), the data need \(3, 5\)"):
        expunge.record(nn.Linear(4, CLASSES), task, data, kind="ridge")
    with pytest.raises(SettingError, match="ridge has no setting alpha; it has: classes, intercept, penalty"):
        expunge.record(nn.Linear(FEATURES, CLASSES), task, data, kind="ridge", alpha=1.0)
    with pytest.raises(SettingError, match="penalty must be at least 0"):
        expunge.record(nn.Linear(FEATURES, CLASSES), task, data, kind="ridge", penalty=-1.0)
    with pytest.raises(SettingError, match="kind must be one of ridge, naive-bayes, lda, not 'curvature'"):
        ClosedForm(lambda: nn.Linear(1, 1), task, "curvature")
    with pytest.raises(UnsupportedTaskError, match="of Classification and Regression, not of"):
        expunge.record(nn.Linear(FEATURES, CLASSES), object(), data, kind="ridge")  # type: ignore[arg-type]


def test_targets_of_a_regression() -> None:
    x, t = rows()
    task, data = Regression(0.1), TensorDataset(x, x.sum(1) + t[:, 0])
    model = ClosedForm(lambda: nn.Linear(FEATURES, 1), task, "ridge", {"penalty": 0.1})(data, 0)
    state = expunge.record(model, task, data, kind="ridge", penalty=0.1)
    known = Ridge(alpha=0.1).fit(x.numpy(), data.tensors[1].numpy())
    assert np.allclose(state.solve()["weight"][0], known.coef_, atol=1e-10)
