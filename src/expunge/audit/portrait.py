"""Everything that is measured of one model; an audit compares portraits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.audit.neighbours import neighbours
from expunge.audit.probe import OneShotProbe
from expunge.audit.relearning import RelearningTest
from expunge.audit.settings import AuditSettings
from expunge.audit.stress import quantised
from expunge.data import MapDataset, subset
from expunge.tasks import Batch
from expunge.training import Run, over_batches
from expunge.training.seeds import generator

FORGET = "forget"


@dataclass(frozen=True)
class Observation:
    """Quality of one model on one dataset.

    Attributes:
        quality: Measures by name, headline first, each (examples,).
        groups: (examples,) name of the group of each example.
        signals: (examples,) what a membership attack looks at, larger for members.
    """

    quality: Mapping[str, NDArray[np.float64]]
    groups: NDArray[np.str_]
    signals: NDArray[np.float64]

    @property
    def headline(self) -> NDArray[np.float64]:
        """The first measure: (examples,)."""
        return next(iter(self.quality.values()))

    @property
    def kinds(self) -> set[str]:
        """Names of the groups that occur."""
        return set(self.groups.tolist())


@dataclass(frozen=True)
class Portrait:
    """What one model does.

    Attributes:
        sets: Quality by name of the set.
        outputs: On the forget set: (examples, ...).
        relearning: For each form of the relearning test, quality at each of its steps, each (examples,).
        recognised: How often the features recognise each forget example after one other: (examples,); None where no
            kind was forgotten as a whole.
        quantised: Headline quality on the forget set with weights rounded to so many bits: (examples,).
        near: Headline quality on the retained examples nearest to the forget set, if asked for: (examples,).
    """

    sets: Mapping[str, Observation]
    outputs: Tensor
    relearning: Mapping[str, list[NDArray[np.float64]]]
    recognised: NDArray[np.float64] | None
    quantised: Mapping[int, NDArray[np.float64]]
    near: NDArray[np.float64] | None


@dataclass(frozen=True)
class Sitting:
    """The examples that every model is measured on, and the run that measures."""

    run: Run
    sets: Mapping[str, MapDataset]
    relearning: RelearningTest
    probe: OneShotProbe
    bits: tuple[int, ...]
    near: MapDataset | None

    @classmethod
    def prepare(
        cls, run: Run, original: nn.Module, sets: Mapping[str, MapDataset], settings: AuditSettings
    ) -> "Sitting":
        """Draw the examples of each set, what is relearned, and the neighbours of the forget set."""
        samples = {name: _sample(run, name, data, settings.examples) for name, data in sets.items()}
        forget, retain, count = samples[FORGET], samples["retain"], settings.neighbours
        return cls(
            run,
            samples,
            RelearningTest.prepare(settings.relearning, run, sets[FORGET], sets["retain"]),
            OneShotProbe.prepare(run, forget, retain),
            settings.bits,
            neighbours(run, original, forget, retain, count) if count else None,
        )

    def portray(self, model: nn.Module) -> Portrait:
        """Measure one model."""
        outputs = torch.cat(over_batches(self.run, model, self.sets[FORGET], self.run.task.outputs))
        return Portrait(
            {name: self._observe(model, data) for name, data in self.sets.items()},
            outputs,
            self.relearning.curves(model),
            self.probe.recognised(model),
            {bits: self._observe(quantised(model, bits), self.sets[FORGET]).headline for bits in self.bits},
            None if self.near is None else self._observe(model, self.near).headline,
        )

    def _observe(self, model: nn.Module, dataset: MapDataset) -> Observation:
        task = self.run.task

        def measure(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], Tensor, list[str]]:
            return dict(task.quality(model, batch)), task.signal(model, batch), list(task.groups(batch))

        pieces = over_batches(self.run, model, dataset, measure)
        quality = {name: torch.cat([piece[0][name] for piece in pieces]).double().numpy() for name in pieces[0][0]}
        signals = torch.cat([piece[1] for piece in pieces]).double().numpy()
        return Observation(quality, np.asarray([group for piece in pieces for group in piece[2]]), signals)


def _sample(run: Run, name: str, dataset: MapDataset, count: int) -> MapDataset:
    if len(dataset) <= count:
        return dataset
    chosen = torch.randperm(len(dataset), generator=generator(run.seed, "sample", name))[:count].sort().values
    return subset(dataset, chosen)
