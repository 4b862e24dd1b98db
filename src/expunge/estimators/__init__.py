"""Scikit-learn's face of the methods that have one: estimators with `fit`, `predict` and `forget`."""

from expunge.estimators.logistic import LogisticRegression
from expunge.estimators.naive_bayes import GaussianNB
from expunge.estimators.ridge import Ridge, RidgeClassifier
from expunge.estimators.sharded import ShardedClassifier

__all__ = ["GaussianNB", "LogisticRegression", "Ridge", "RidgeClassifier", "ShardedClassifier"]
