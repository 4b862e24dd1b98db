"""Any classifier, fitted in shards, so that forgetting refits only the shards that are touched."""

import hashlib
from numbers import Integral
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from expunge.errors import ForgetSetError, SettingError
from expunge.estimators._rows import Indices, Request, RowStore, codes, numbers, read_again, read_labelled
from expunge.methods.exactness import certify_shards
from expunge.privacy import Certificate
from expunge.states import RowLedger

Floats = NDArray[np.float64]


class ShardedClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """An ensemble of clones of a classifier, each fitted to a shard of the rows (SISA without slices).

    Which shard a row goes to depends on its position in the data given to `fit` and on `random_state`, and on nothing
    else; forgetting moves no other row. So the estimator after `forget` is the one fitted to the rest, shard by shard.
    It keeps the rows, without which no shard can be refitted.

    Args:
        estimator: What is cloned.
        n_shards: Number of clones.
        aggregation: `mean` of the clones' probabilities, or `vote`, the share of clones that favour a class.
        random_state: Seed of the places and of clones that draw at random. None draws one at `fit` and keeps it, so
            that forgetting refits a shard with the seed it was fitted with.

    Attributes:
        classes_: (classes,) of the rows that are left.
        estimators_: The fitted clones; None for a shard without rows, and a class where a shard has one class only.
        shards_: (rows given to `fit`,) the shard of each.
        certificate_: What is guaranteed of the last deletion.

    Source: Bourtoule et al. 2021 (arXiv 1912.03817).
    """

    classes_: NDArray[Any]
    certificate_: Certificate

    def __init__(
        self,
        estimator: Any,
        *,
        n_shards: int = 5,
        aggregation: Literal["mean", "vote"] = "mean",
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_shards = n_shards
        self.aggregation = aggregation
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to rows (rows, features) and labels (rows,)."""
        self._check_settings()
        inputs, labels = read_labelled(self, X, y)
        self._labels = np.unique(labels)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        targets = numbers(codes(labels, self._labels))
        self._ledger = RowLedger.of(inputs, targets)
        self._rows = RowStore.of(inputs, targets, self._ledger)
        self.shards_ = _places(len(labels), self.n_shards, self._seed)
        self.estimators_ = [self._fitted(shard, self._rows) for shard in range(self.n_shards)]
        self.classes_ = self._labels
        self.__dict__.pop("certificate_", None)
        return self

    def forget(self, X: Any = None, y: Any = None, *, indices: Indices | None = None) -> Self:
        """Forget rows: the shards that hold them are fitted afresh to what is left of them.

        Args:
            X: The rows, (rows, features), exactly as they were given to `fit`; with
            y: their labels. Or
            indices: positions of the rows in the data given to `fit`, or a mask over them.

        Returns:
            The estimator itself, with `certificate_` set.

        Raises:
            UnknownRowError: A row was never fitted to, or was forgotten before.
            AlreadyForgottenError: A row that is named by its position was forgotten before.
            ForgetSetError: No row would be left.
        """
        check_is_fitted(self)
        request = Request.read(X, y, indices, self._rows, self._asked)
        ledger = self._ledger.remove(request.inputs, request.targets)
        if len(ledger) == 0:
            raise ForgetSetError("the forget set is everything that the estimator holds; discard it instead")
        places = request.places_in(self._rows, self._ledger)
        left = self._rows.without(places)
        touched = np.unique(self.shards_[self._rows.positions[places].numpy()])
        refitted = {int(shard): self._fitted(int(shard), left) for shard in touched}
        self.estimators_ = [refitted.get(shard, member) for shard, member in enumerate(self.estimators_)]
        self.classes_ = self._labels[np.unique(left.targets.numpy().astype(int))]
        self.certificate_ = certify_shards(len(places), len(ledger), len(touched), self.n_shards)
        self._rows, self._ledger = left, ledger
        return self

    def predict_proba(self, X: Any) -> Floats:
        """Mean probabilities, or shares of votes, of the classes: (rows, classes)."""
        check_is_fitted(self)
        rows = cast("NDArray[Any]", validate_data(self, X, reset=False))
        answers = [self._answer(member, rows) for member in self.estimators_ if member is not None]
        return np.mean(answers, axis=0)

    def predict(self, X: Any) -> NDArray[Any]:
        """The class with the largest share: (rows,)."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def _asked(self, X: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = read_again(self, X, y)
        return inputs, numbers(codes(labels, self._labels))

    def _check_settings(self) -> None:
        if isinstance(self.n_shards, bool) or not isinstance(self.n_shards, Integral) or self.n_shards < 1:
            raise SettingError(f"n_shards must be a whole number of at least 1, not {self.n_shards!r}")
        if self.aggregation not in ("mean", "vote"):
            raise SettingError(f"aggregation must be 'mean' or 'vote', not {self.aggregation!r}")
        if self.aggregation == "mean" and not hasattr(self.estimator, "predict_proba"):
            raise SettingError(
                f"{type(self.estimator).__name__} gives no probabilities to take the mean of; use aggregation='vote'"
            )

    def _fitted(self, shard: int, rows: RowStore) -> Any:
        """A clone fitted to a shard; a class where the shard has no other, None where it has no row."""
        mine = torch.from_numpy(self.shards_)[rows.positions] == shard
        labels = self._labels[rows.targets[mine, 0].long().numpy()]
        if len(labels) == 0:
            return None
        if len(np.unique(labels)) == 1:
            return labels[0]
        member = cast(Any, clone(self.estimator))
        seeds = [name for name in member.get_params() if name == "random_state" or name.endswith("__random_state")]
        member.set_params(**dict.fromkeys(seeds, (self._seed + shard) % 2**31))
        return member.fit(rows.inputs[mine].numpy(), labels)

    def _answer(self, member: Any, rows: NDArray[Any]) -> Floats:
        """What a member says of each class that is left: (rows, classes)."""
        answer = np.zeros((len(rows), len(self.classes_)))
        if not hasattr(member, "predict"):
            answer[:, self.classes_ == member] = 1
        elif self.aggregation == "mean":
            answer[:, np.searchsorted(self.classes_, member.classes_)] = member.predict_proba(rows)
        else:
            answer[np.arange(len(rows)), np.searchsorted(self.classes_, member.predict(rows))] = 1
        return answer


def _places(rows: int, shards: int, seed: int) -> NDArray[np.int64]:
    key = hashlib.sha256(f"shards {seed}".encode()).digest()
    words = [hashlib.blake2b(str(row).encode(), key=key, digest_size=8).digest() for row in range(rows)]
    return np.array([int.from_bytes(word, "big") % shards for word in words], dtype=np.int64)
