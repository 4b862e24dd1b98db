"""Whether a deleted row can be recovered from the models released before and after its deletion.

Two exact models differ because of the deleted row alone. Where weights θ and θ' are the optima with and without a row
x of a loss in the logits θ x, the objective's gradients give

    Σ over the rows left of [∇loss(θ') - ∇loss(θ)], and the same of the penalty = ∇loss(θ; x) = r xᵀ,

with r the residual (p - y, or prediction - target) of the deleted row. So whoever knows a sample of the same
population can estimate the left side and reads x off its direction; for least squares the left side is the product of
curvature and parameter difference. Bertran et al. 2024 (arXiv 2405.20272) found it; the derivation here is ours.

The noise of a certificate is made to hide what a deletion leaves behind, which is much less than what it changes. So a
certified model can be safe on its own and yet, beside the original, give the row away.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.audit.intervals import Part
from expunge.data import MapDataset
from expunge.errors import DataError, ModelError, UnsupportedTaskError
from expunge.storage import digest_tensors
from expunge.tasks import Classification, Regression, Task
from expunge.training import Run, over_batches
from expunge.training.seeds import derive

HeadObjective = Literal["squared", "softmax", "one-vs-rest"]

_RANDOM_ROWS = 1000
_FEWEST_REFERENCES = 20
_LIKE = 0.5
_CHANCE = 0.01


class Reconstruction(Part):
    """How like a deleted row is what an attacker recovers from two released models.

    Similarities are cosines, after the reference rows' means are taken off and each feature is divided by its standard
    deviation where the head has a bias, which gives the size of the recovered row; without a bias only a row's
    direction can be told but for its sign, and the figure is the size of the cosine of the rows as they are. No row is
    kept here.

    Attributes:
        deleted: Rows that were deleted. Of several rows the attack finds a mixture, and `similarity` is that of the
            most similar one.
        references: Rows that the attacker knows.
        similarity: Cosine of the recovered row with the (most similar) deleted one.
        others: Mean cosine with the reference rows.
        others_as_like: Share of reference rows (or, for several deleted rows, of draws of as many) that are at least as
            similar: near 0 where the attack tells the deleted row from its fellows.
        random: Mean cosine with random rows of the reference rows' mean and covariance.
        random_as_like: Share of random rows, drawn likewise, that are at least as similar.
        standardised: Whether the cosines are of standardised rows.
        rank_one: Share of the recovered gradient that one direction explains; 1 for one deleted row and no noise.
            It says nothing where the head has one output.
        succeeded: Whether similarity is at least 0.5 and at most 1 in 100 reference and random rows reach it.
        sentence: The finding in words.
    """

    deleted: int
    references: int
    similarity: float
    others: float
    others_as_like: float
    random: float
    random_as_like: float
    standardised: bool
    rank_one: float
    succeeded: bool
    sentence: str

    @property
    def warning(self) -> str | None:
        """What a reader must know, where the attack succeeded."""
        return self.sentence if self.succeeded else None


def reconstruct(
    original: nn.Module,
    unlearned: nn.Module,
    task: Task,
    forget: MapDataset,
    reference: MapDataset,
    *,
    loss: HeadObjective | None = None,
    l2: float = 0.0,
    rows_left: int | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Try to recover a deleted row from a linear head before and after, as somebody could who is given both.

    Args:
        original: The model before the deletion; a linear layer, or a model that ends in one.
        unlearned: The model after it. Only its head may differ.
        task: A classification or a regression.
        forget: The deleted rows; the attack does not use them, its result is held against them.
        reference: Rows of the same population that the attacker knows. The rows that were left make the strongest
            attacker; a holdout makes a more usual one. The deleted rows must not be among them.
        loss: What the head was trained on; by default squares for a regression, softmax for a classification.
        l2: Strength of the penalty (l2/2) ‖W‖² beside the mean loss. It is on the bias too, except for squares, where
            the penalty on the summed squares is `l2 * rows_left` and the same before and after.
        rows_left: Rows after the deletion; by default as many as there are reference rows.
        seed: Of the random rows.

    Raises:
        UnsupportedTaskError: The task has no linear head.
        ModelError: Something other than the head differs between the models, or nothing does.
        DataError: There are fewer than 20 reference rows.
    """
    if not isinstance(task, Classification | Regression):
        raise UnsupportedTaskError(f"a reconstruction needs Classification or Regression, not {type(task).__name__}")
    if len(reference) < _FEWEST_REFERENCES:
        raise DataError(
            f"there are {len(reference)} reference rows; a row is only known to be recovered where it stands out "
            f"among others, so give at least {_FEWEST_REFERENCES}"
        )
    objective: HeadObjective = loss or ("squared" if isinstance(task, Regression) else "softmax")
    before, after = _heads(original, unlearned, task)
    run = Run(task, seed)
    known, deleted = (_features(run, original, task, rows) for rows in (reference, forget))
    bias = before.shape[1] > known.shape[1]
    gradient = _row_gradient(before, after, known, objective, l2, rows_left or len(reference), bias=bias)
    if objective != "squared":
        gradient -= len(forget) * l2 * before
    return _judge(_direction(gradient, bias=bias), known.numpy(), deleted.numpy(), seed)


def _row_gradient(
    before: Tensor, after: Tensor, rows: Tensor, loss: HeadObjective, l2: float, count: int, *, bias: bool
) -> Tensor:
    """The deleted rows' gradient at `before`, (outputs, width), as the attacker estimates it."""
    wide = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if bias else rows

    def answers(weights: Tensor) -> Tensor:
        logits = wide @ weights.T
        return {"squared": logits, "softmax": logits.softmax(1), "one-vs-rest": logits.sigmoid()}[loss]

    moved = (answers(after) - answers(before)).T @ wide / len(wide)
    penalty = l2 * (after - before)
    if loss == "squared" and bias:
        penalty[:, -1] = 0
    return count * (moved + penalty)


@dataclass(frozen=True)
class _Recovered:
    """A row as the attacker sees it.

    Attributes:
        row: (features,)
        sized: Whether its size is known, from the constant feature of the bias.
        rank_one: Share of the gradient that it explains.
    """

    row: NDArray[np.float64]
    sized: bool
    rank_one: float

    def likeness(self, rows: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cosine with each of `rows`, standardised by what is known where the size allows it: (rows,)."""
        if not self.sized:
            return np.abs(_cosines(rows, self.row))
        centre, scale = known.mean(0), known.std(0)
        scale = np.where(scale > 0, scale, 1)
        return _cosines((rows - centre) / scale, (self.row - centre) / scale)


def _direction(gradient: Tensor, *, bias: bool) -> _Recovered:
    """The row x that explains most of a gradient r xᵀ."""
    _, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
    row = right[0]
    share = float(sizes[0].square() / sizes.square().sum().clamp(min=torch.finfo(sizes.dtype).tiny))
    if bias:
        row = row[:-1] / (float(row[-1]) or 1.0)
    return _Recovered(row.numpy(), sized=bias, rank_one=share)


def _judge(found: _Recovered, known: NDArray[np.float64], deleted: NDArray[np.float64], seed: int) -> Reconstruction:
    draw = np.random.default_rng(derive(seed, "reconstruction"))
    covariance = np.atleast_2d(np.cov(known.T))
    random = draw.multivariate_normal(known.mean(0), covariance, size=_RANDOM_ROWS, method="eigh")
    similarity = float(found.likeness(deleted, known).max())
    others, chance = found.likeness(known, known), found.likeness(random, known)
    as_like = [1 - (1 - float((rows >= similarity).mean())) ** len(deleted) for rows in (others, chance)]
    succeeded = similarity >= _LIKE and max(as_like) <= _CHANCE
    return Reconstruction(
        deleted=len(deleted),
        references=len(known),
        similarity=similarity,
        others=float(others.mean()),
        others_as_like=as_like[0],
        random=float(chance.mean()),
        random_as_like=as_like[1],
        standardised=found.sized,
        rank_one=found.rank_one,
        succeeded=succeeded,
        sentence=_sentence(similarity, float(others.mean()), len(deleted), succeeded=succeeded),
    )


def _sentence(similarity: float, others: float, deleted: int, *, succeeded: bool) -> str:
    figures = f"cosine {similarity:.3f}, other rows {others:.3f} on average"
    if not succeeded:
        return (
            f"From the models before and after, this attack did not recover {'a' if deleted > 1 else 'the'} deleted "
            f"row ({figures}); another attack may."
        )
    if deleted == 1:
        return (
            f"Whoever holds the models before and after can reconstruct the deleted row ({figures}): do not release "
            "both. A certificate does not cover the pair."
        )
    return (
        f"Whoever holds the models before and after can reconstruct a mixture of the {deleted} deleted rows, of which "
        f"one is recognisable ({figures}): do not release both. A certificate does not cover the pair."
    )


def _cosines(rows: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
    return np.divide(rows @ direction, lengths, out=np.zeros(len(rows)), where=lengths > 0)


def _heads(original: nn.Module, unlearned: nn.Module, task: Classification | Regression) -> tuple[Tensor, Tensor]:
    """The heads' weights in float64, with the bias as last column where there is one: (outputs, width)."""
    found: list[Tensor] = []
    rest: list[str] = []
    for model in (original, unlearned):
        head = task.head_of(model)
        if not isinstance(head, nn.Linear):
            raise ModelError("the last layer is a convolution; a reconstruction needs a linear layer")
        own = {id(parameter) for parameter in head.parameters()}
        rest.append(digest_tensors({
            name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in own
        }))  # fmt: skip
        parts = [head.weight.detach().double().cpu()]
        if head.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            parts.append(head.bias.detach().double().cpu()[:, None])
        found.append(torch.cat(parts, dim=1))
    if rest[0] != rest[1]:
        raise ModelError("layers before the head differ between the models; this attack is on a linear head alone")
    if found[0].shape != found[1].shape or torch.equal(*found):
        raise ModelError("the two models have the same head, or heads of other shapes, so there is nothing to attack")
    return found[0], found[1]


def _features(run: Run, model: nn.Module, task: Task, rows: MapDataset) -> Tensor:
    """What the head sees of each row: (rows, features) float64."""
    frozen = run.frozen(model)
    return torch.cat(over_batches(run, frozen, rows, lambda each, batch: task.features(each, batch))).double()
