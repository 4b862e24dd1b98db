"""Scikit-learn's own checks of its conventions."""

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression as PlainLogisticRegression
from sklearn.naive_bayes import GaussianNB as PlainGaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from expunge.estimators import GaussianNB, LogisticRegression, Ridge, RidgeClassifier, ShardedClassifier

ESTIMATORS = [
    Ridge(),
    Ridge(fit_intercept=False, keep_rows=False),
    RidgeClassifier(),
    RidgeClassifier(keep_rows=False),
    GaussianNB(),
    LogisticRegression(),
    ShardedClassifier(PlainLogisticRegression(), n_shards=2),
    ShardedClassifier(PlainGaussianNB(), n_shards=3, aggregation="vote"),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore:.*rows are longer than feature_norm:UserWarning")
@parametrize_with_checks(ESTIMATORS)
def test_conventions(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
