"""Quality by group before and after a deletion: does a model treat people more alike without a part of its data?"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.audit.intervals import LEVEL, Estimate, Interval, Part
from expunge.data import FieldKey, MapDataset, column
from expunge.errors import DataError, LabelError, MissingNeedError
from expunge.tasks import Classification
from expunge.training import Run, over_batches

ACCURACY, SELECTED, TRUE_POSITIVE = "accuracy", "selection rate", "true positive rate"

_RESAMPLES = 2000
_MOST_GROUPS = 50


class Change(Part):
    """A figure before and after, and by how much it changed; the two models are compared on the same examples.

    Attributes:
        name: `accuracy`, `selection rate` (share given the positive class) or `true positive rate`.
        before: Of the original.
        after: Of the unlearned model.
        change: After less before, with the interval of a paired bootstrap.
    """

    name: str
    before: Estimate
    after: Estimate
    change: Estimate


class GroupQuality(Part):
    """One group's figures.

    Attributes:
        group: Its value in the sensitive column.
        examples: How many there are.
        positives: How many of them are of the positive class.
        measures: Its figures; a true positive rate is absent where there are no positives.
    """

    group: str
    examples: int
    positives: int
    measures: list[Change]


class Fairness(Part):
    """Figures by group, and the gap between the best and the worst group.

    Attributes:
        positive: Number of the class that counts as being selected.
        groups: Each group's figures.
        gaps: For each measure the largest difference between two groups: below 0 in `change` means that the groups are
            treated more alike than before. By chance alone a gap is above 0, and so is its interval, the more so the
            smaller the groups are; only `change` is to be tested against 0.
    """

    positive: int
    groups: list[GroupQuality]
    gaps: list[Change]

    def gap(self, name: str) -> Change:
        """The gap in this measure.

        Raises:
            KeyError: There is none.
        """
        for change in self.gaps:
            if change.name == name:
                return change
        raise KeyError(f"no gap in {name!r}; there are: {', '.join(change.name for change in self.gaps)}")


def fairness(
    original: nn.Module,
    unlearned: nn.Module,
    task: Classification,
    dataset: MapDataset,
    sensitive: FieldKey | Sequence[Any] | NDArray[Any],
    *,
    positive: int = 1,
    seed: int = 0,
) -> Fairness:
    """Compare two models by group, with fairlearn's `MetricFrame` and a paired bootstrap over examples.

    Args:
        original: The model before.
        unlearned: The model after.
        task: What they are for.
        dataset: Examples that neither model was trained on, best of all a holdout.
        sensitive: Field of an example that holds the group, or the group of every example: (examples,).
        positive: The class that counts as being selected, such as that of being treated.
        seed: Of the bootstrap.

    Raises:
        MissingNeedError: fairlearn is not installed.
        LabelError: The positive class is none of the task.
        DataError: There is a single group, more than 50, or not one group an example.
    """
    frame = _metric_frame()
    if not 0 <= positive < task.classes:
        raise LabelError(f"the positive class is {positive}, outside the {task.classes} classes of the task")
    groups = _groups(dataset, sensitive)
    run = Run(task, seed)
    wanted = task.labels_of(dataset).numpy() == positive
    answers: list[NDArray[np.bool_]] = []
    right: list[NDArray[np.bool_]] = []
    for model in (original, unlearned):
        said = np.concatenate(
            [logits.argmax(1).numpy() for logits in over_batches(run, run.frozen(model), dataset, task.outputs)]
        )
        answers.append(said == positive)
        right.append(said == task.labels_of(dataset).numpy())
    points = [_by_group(frame, groups, wanted, chosen, correct) for chosen, correct in zip(answers, right, strict=True)]
    cells = _Cells.of(groups, wanted, answers, right)
    return _summary(positive, cells, points, cells.resample(seed))


@dataclass(frozen=True)
class _Cells:
    """Examples that no rate tells apart, counted; to resample the counts is to resample the examples.

    Attributes:
        names: Of the groups.
        sizes: (cells,) examples in each.
        members: (groups, cells) 1 where a cell is of a group.
        wanted: (cells,) whether its examples are of the positive class.
        chosen: The same for each model's answer.
        right: The same for whether each model is right.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    members: NDArray[np.float64]
    wanted: NDArray[np.bool_]
    chosen: Sequence[NDArray[np.bool_]]
    right: Sequence[NDArray[np.bool_]]

    @classmethod
    def of(
        cls,
        groups: NDArray[np.str_],
        wanted: NDArray[np.bool_],
        chosen: Sequence[NDArray[np.bool_]],
        right: Sequence[NDArray[np.bool_]],
    ) -> "_Cells":
        names, places = np.unique(groups, return_inverse=True)
        table = np.stack([places, wanted, *chosen, *right])
        cells, sizes = np.unique(table, axis=1, return_counts=True)
        flags = cells[1:].astype(bool)
        members = (cells[0] == np.arange(len(names))[:, None]).astype(float)
        return cls([str(name) for name in names], sizes, members, flags[0], list(flags[1:3]), list(flags[3:5]))

    def held(self, *, positive: bool = False) -> NDArray[np.int64]:
        """Examples of each group, or those of the positive class: (groups,)."""
        counted = self.sizes * self.wanted if positive else self.sizes
        return (self.members @ counted).astype(np.int64)

    def resample(self, seed: int) -> list[dict[str, NDArray[np.float64]]]:
        """Rates of both models on the same resamples: (resamples, groups) each."""
        count = int(self.sizes.sum())
        drawn = np.random.default_rng(seed).multinomial(count, self.sizes / count, size=_RESAMPLES)
        return [self._rates(drawn.astype(float), model) for model in (0, 1)]

    def _rates(self, sizes: NDArray[np.float64], model: int) -> dict[str, NDArray[np.float64]]:
        """Each measure where cells hold `sizes` (resamples, cells) examples: (resamples, groups), NaN for 0/0."""

        def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> NDArray[np.float64]:
            top, bottom = (sizes * counted @ self.members.T for counted in (part, whole))
            return np.divide(top, bottom, out=np.full_like(bottom, np.nan), where=bottom > 0)

        every = np.ones_like(self.wanted)
        return {
            ACCURACY: share(self.right[model], every),
            SELECTED: share(self.chosen[model], every),
            TRUE_POSITIVE: share(self.wanted & self.chosen[model], self.wanted),
        }


def _by_group(
    frame: Any,
    groups: NDArray[np.str_],
    wanted: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    right: NDArray[np.bool_],
) -> dict[str, dict[str, float]]:
    """Each measure by group, from fairlearn; accuracy is over all classes, the others of the positive one."""
    metrics = importlib.import_module("fairlearn.metrics")

    def share_right(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
        return float(np.mean(truth == prediction))

    rates = {SELECTED: metrics.selection_rate, TRUE_POSITIVE: metrics.true_positive_rate}
    found: dict[str, dict[str, float]] = {}
    pairs: list[tuple[Mapping[str, Callable[..., float]], NDArray[np.bool_], NDArray[np.bool_]]] = [
        ({ACCURACY: share_right}, np.ones_like(right), right),
        (rates, wanted, chosen),
    ]
    for functions, truth, prediction in pairs:
        table = frame(
            metrics=functions, y_true=truth.astype(int), y_pred=prediction.astype(int), sensitive_features=groups
        )
        found |= {
            name: {str(group): float(value) for group, value in table.by_group[name].items()} for name in functions
        }
    return found


def _summary(
    positive: int,
    cells: _Cells,
    points: Sequence[Mapping[str, Mapping[str, float]]],
    resampled: Sequence[Mapping[str, NDArray[np.float64]]],
) -> Fairness:
    examples, positives = cells.held(), cells.held(positive=True)

    def known(name: str) -> list[int]:
        return [place for place in range(len(cells.names)) if name != TRUE_POSITIVE or positives[place] > 0]

    def change(name: str, place: int) -> Change:
        values = [side[name][cells.names[place]] for side in points]
        return _change(name, values, [side[name][:, place] for side in resampled])

    def gap(name: str) -> Change:
        values = [[side[name][cells.names[place]] for place in known(name)] for side in points]
        drawn = [_gap(side[name][:, known(name)]) for side in resampled]
        return _change(name, [max(each) - min(each) for each in values], drawn)

    return Fairness(
        positive=positive,
        groups=[
            GroupQuality(
                group=group,
                examples=int(examples[place]),
                positives=int(positives[place]),
                measures=[change(name, place) for name in points[0] if place in known(name)],
            )
            for place, group in enumerate(cells.names)
        ],
        gaps=[gap(name) for name in points[0] if len(known(name)) > 1],
    )


def _gap(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest less smallest of the groups that a resample holds: (resamples,)."""
    return np.fmax.reduce(rates, axis=1) - np.fmin.reduce(rates, axis=1)


def _change(name: str, values: Sequence[float], drawn: Sequence[NDArray[np.float64]]) -> Change:
    before, after = values
    return Change(
        name=name,
        before=Estimate(value=before, interval=_percentiles(drawn[0])),
        after=Estimate(value=after, interval=_percentiles(drawn[1])),
        change=Estimate(value=after - before, interval=_percentiles(drawn[1] - drawn[0])),
    )


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.nanquantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(low=float(low), high=float(high))


def _groups(dataset: MapDataset, sensitive: FieldKey | Sequence[Any] | NDArray[Any]) -> NDArray[np.str_]:
    values = column(dataset, sensitive) if isinstance(sensitive, str | int) else np.asarray(sensitive)
    if values.shape != (len(dataset),):
        raise DataError(
            f"the sensitive column has shape {values.shape}, where one group an example was expected: {len(dataset)}"
        )
    names = values.astype(str)
    found = len(np.unique(names))
    if found < 2:
        raise DataError("all examples are of one group, so there is nothing to compare; check the sensitive column")
    if found > _MOST_GROUPS:
        raise DataError(
            f"the sensitive column has {found} values for {len(names)} examples, more than {_MOST_GROUPS}; put them "
            "into groups (ranges of age, say), so that no group is a single person"
        )
    return cast("NDArray[np.str_]", names)


def _metric_frame() -> Any:
    try:
        return importlib.import_module("fairlearn.metrics").MetricFrame
    except ImportError as error:
        raise MissingNeedError(
            "quality by group needs fairlearn, which is not installed: pip install 'expunge[fairness]'"
        ) from error
