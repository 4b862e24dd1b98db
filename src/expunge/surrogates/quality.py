"""How far a surrogate is from the data that it stands in for, as far as anything is known of them.

What is known are statistics, and a statistic that agrees proves nothing. So every figure here says in which direction
it errs: those that speak of the total variation distance are lower bounds of it, up to sampling, and the surrogate may
be arbitrarily farther away. None can serve as the τ of a certificate, which is the user's to declare.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import DataError, SettingError
from expunge.states.moments import ClassMoments
from expunge.states.statistics import read_rows
from expunge.tasks import Classification
from expunge.training import Run, over_batches
from expunge.training.seeds import generator

_FEWEST = 20
_SURE = 0.05


class Direction(StrEnum):
    """In which direction a figure errs, as a statement on the total variation distance."""

    LOWER_BOUND = "the distance is at least this, up to sampling; it may be anything up to 1"
    NO_BOUND = "says nothing on the distance; 0 is what a perfect surrogate would show, and others may show it too"


class QualityFigure(BaseModel):
    """One comparison.

    Attributes:
        name: What was compared.
        value: The figure; 0 is best.
        sampling: By how much chance alone may raise the figure: with 95 % probability the population's is at least
            `value - sampling`. None where that is not known.
        direction: In which direction it errs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float
    sampling: float | None
    direction: Direction


class SurrogateQuality(BaseModel):
    """A surrogate beside what is known of the data.

    Attributes:
        examples: In the surrogate.
        confidence: The model's mean confidence on it.
        figures: The comparisons that what is known allows.
        distance_at_least: The largest of the lower bounds of the total variation distance, less what sampling may
            explain. It is no estimate of the distance from above, and no certificate accepts it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: int
    confidence: float
    figures: tuple[QualityFigure, ...]
    distance_at_least: float

    def check_declared(self, distance: float) -> float:
        """Return a declared distance τ; raise where it contradicts what was found.

        Raises:
            SettingError: The distance is below `distance_at_least`, so a certificate with it would be void.
        """
        if not self.distance_at_least <= distance <= 1:
            raise SettingError(
                f"the declared distance is {distance:g}, but the surrogate is at least "
                f"{self.distance_at_least:.3g} from the data; declare what you can justify from outside, up to 1, or "
                "make a better surrogate"
            )
        return distance


def measure_quality(
    surrogate: MapDataset,
    model: nn.Module,
    task: Classification,
    *,
    moments: ClassMoments | None = None,
    shares: Sequence[float] | None = None,
    confidence: float | None = None,
    real: MapDataset | None = None,
    seed: int = 0,
) -> SurrogateQuality:
    """Hold a surrogate against whatever is known.

    Args:
        surrogate: The stand-in data.
        model: The original.
        task: What it is for.
        moments: State of kind `moments` of the training set.
        shares: Share of each class in the training set; those of the moments by default.
        confidence: Mean of the model's largest class probability over the training set.
        real: Data of the same kind as the training set, such as a holdout, for a test by a classifier.
        seed: Of the split into halves on which directions are chosen and judged.

    Raises:
        DataError: A set has fewer than 20 examples, or another number of features.
        SettingError: The shares are none.
    """
    for name, dataset in (("surrogate", surrogate), ("real data", real)):
        if dataset is not None and len(dataset) < _FEWEST:
            raise DataError(f"the {name} have {len(dataset)} examples, too few to compare; give at least {_FEWEST}")
    inputs, targets = read_rows(task, surrogate)
    run = Run(task, seed)
    sure = torch.cat(
        over_batches(
            run, run.frozen(model), surrogate, lambda each, batch: task.outputs(each, batch).softmax(1).amax(1)
        )
    )
    figures: list[QualityFigure] = []
    if shares is None and moments is not None:
        shares = (moments.counts / moments.counts.sum()).tolist()
    if shares is not None:
        figures.append(_class_shares(targets, shares, task.classes))
    if confidence is not None:
        figures.append(_confidence(sure, confidence, task.classes))
    if moments is not None:
        figures += _moments(inputs, moments, seed)
    if real is not None:
        figures.append(_classifier(inputs, read_rows(task, real)[0], seed))
    bounds = [each.value - (each.sampling or 0.0) for each in figures if each.direction is Direction.LOWER_BOUND]
    return SurrogateQuality(
        examples=len(inputs),
        confidence=float(sure.double().mean()),
        figures=tuple(figures),
        distance_at_least=max([0.0, *bounds]),
    )


def _class_shares(targets: Tensor, shares: Sequence[float], classes: int) -> QualityFigure:
    """Distance of the labels' distributions; a function of the examples cannot be farther apart than they are."""
    wanted = torch.tensor(list(shares), dtype=torch.double)
    if len(wanted) != classes or bool((wanted < 0).any()) or abs(float(wanted.sum()) - 1) > 1e-6:
        raise SettingError(f"shares must be {classes} numbers from 0 that sum to 1, not {list(shares)}")
    value = 0.5 * float((targets.mean(0) - wanted).abs().sum())
    count = len(targets)
    # E|p̂ - p| summed is at most √(K/n) (Jensen), and one example moves half of the sum by 1/n (McDiarmid)
    sampling = 0.5 * math.sqrt(classes / count) + math.sqrt(math.log(1 / _SURE) / (2 * count))
    return QualityFigure(name="class shares", value=value, sampling=sampling, direction=Direction.LOWER_BOUND)


def _confidence(sure: Tensor, known: float, classes: int) -> QualityFigure:
    """Means of a number in [1/K, 1] differ by at most the distance times 1 - 1/K; Hoeffding for the sampling."""
    if not 1 / classes <= known <= 1:
        raise SettingError(f"confidence must lie between 1/{classes} and 1, not {known}")
    value = abs(float(sure.double().mean()) - known) / (1 - 1 / classes)
    sampling = math.sqrt(math.log(2 / _SURE) / (2 * len(sure)))
    return QualityFigure(name="confidence", value=value, sampling=sampling, direction=Direction.LOWER_BOUND)


def _moments(inputs: Tensor, moments: ClassMoments, seed: int) -> list[QualityFigure]:
    """Means along the direction that parts them most, and covariances."""
    if inputs.shape[1] != moments.shape[0]:
        raise DataError(f"the surrogate has {inputs.shape[1]} features, the moments {moments.shape[0]}")
    mean, covariance = moments.overall()
    order = torch.randperm(len(inputs), generator=generator(seed, "halves"))
    choose, judge = inputs[order].tensor_split(2)
    ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.double)
    direction = torch.linalg.solve(covariance + choose.T.cov() + ridge, choose.mean(0) - mean)
    along = judge @ direction
    spread = float(along.var() + direction @ covariance @ direction)
    gap = float(along.mean() - direction @ mean) ** 2
    # Cauchy-Schwarz: |E a - E b|² ≤ 2 TV (Var a + Var b + gap/2); the gap is that of the mean of half the surrogate
    bound = gap / (2 * spread + gap) if spread > 0 else 0.0
    lower = max(0.0, math.sqrt(gap) - 1.96 * math.sqrt(float(along.var()) / len(along))) ** 2
    sampling = bound - (lower / (2 * spread + lower) if spread > 0 else 0.0)
    apart = float((inputs.T.cov() - covariance).norm() / covariance.norm())
    return [
        QualityFigure(name="means", value=bound, sampling=sampling, direction=Direction.LOWER_BOUND),
        QualityFigure(name="covariance, relative", value=apart, sampling=None, direction=Direction.NO_BOUND),
    ]


def _classifier(inputs: Tensor, real: Tensor, seed: int) -> QualityFigure:
    """Youden's J of a classifier of real against surrogate on examples it was not fitted to; at most the distance."""
    if inputs.shape[1] != real.shape[1]:
        raise DataError(f"the surrogate has {inputs.shape[1]} features, the real data have {real.shape[1]}")
    halves: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for name, rows in (("surrogate", inputs), ("real", real)):
        order = torch.randperm(len(rows), generator=generator(seed, "halves", name))
        choose, judge = rows[order].tensor_split(2)
        halves.append((choose.numpy(), judge.numpy()))
    fitted = np.concatenate([half[0] for half in halves])
    centre, scale = fitted.mean(0), fitted.std(0)
    scale = np.where(scale > 0, scale, 1)

    def quadratic(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        standard = (rows - centre) / scale
        return np.concatenate([standard, standard**2], axis=1)

    answers = np.repeat([0, 1], [len(half[0]) for half in halves])
    classifier = LogisticRegression(max_iter=1000).fit(quadratic(fitted), answers)
    rates = [float(np.mean(classifier.predict(quadratic(half[1])))) for half in halves]
    # Hoeffding for each of the two rates
    sampling = sum(math.sqrt(math.log(2 / _SURE) / (2 * len(half[1]))) for half in halves)
    value = max(0.0, rates[1] - rates[0])
    return QualityFigure(
        name="told apart by a classifier", value=value, sampling=sampling, direction=Direction.LOWER_BOUND
    )
