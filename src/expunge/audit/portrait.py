"""Everything that is measured of one model; an audit compares portraits."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.audit.attacks import baseline_scores
from expunge.audit.feature_networks import FeatureNetwork
from expunge.audit.gallery import Gallery, Restored
from expunge.audit.neighbours import neighbours
from expunge.audit.probe import Probes
from expunge.audit.relearning import RelearningTest
from expunge.audit.rewording import reworded
from expunge.audit.settings import AuditSettings
from expunge.audit.stress import quantised
from expunge.data import MapDataset, subset
from expunge.tasks import Batch, Classification, Regression, Task, asked_once
from expunge.training import Run, over_batches
from expunge.training.seeds import generator

FORGET = "forget"
LOSS = "loss"

_READ_OFF_OUTPUTS = {Classification, Regression}  # not classes made from them, whose readings may change the model

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """What one model does on one dataset.

    Attributes:
        quality: Measures by name, headline first, each (examples,).
        groups: (examples,) name of the group of each example.
        signals: (examples,) what a membership attack looks at, larger for members.
        scores: Membership scores that need no other model, by name, each (examples,); the negated `loss` is always
            among them.
        answered: (examples,) the kind of answer that is given most, or None where the task has no kinds.
    """

    quality: Mapping[str, Floats]
    groups: NDArray[np.str_]
    signals: Floats
    scores: Mapping[str, Floats]
    answered: NDArray[np.str_] | None

    @property
    def headline(self) -> Floats:
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
        sets: What it does on each set, by name.
        outputs: On the forget set: (examples, ...).
        relearning: For each form of the relearning test, quality at each of its steps, each (examples,); none where a
            single example is to be forgotten.
        recognised: By probe, how often its features recognise each forget example: (examples,).
        quantised: Headline quality on the forget set with weights rounded to so many bits: (examples,).
        reworded: By kind of rewording, probability of the true answers of the forget set: (examples,).
        near: Headline quality on the retained examples nearest to the forget set, if asked for: (examples,).
        restored: What it makes of pictures, where that is its task.
    """

    sets: Mapping[str, Observation]
    outputs: Tensor
    relearning: Mapping[str, list[Floats]]
    recognised: Mapping[str, Floats]
    quantised: Mapping[int, Floats]
    reworded: Mapping[str, Floats]
    near: Floats | None
    restored: Restored | None = None


@dataclass(frozen=True)
class Sitting:
    """The examples that every model is measured on, and the run that measures.

    Attributes:
        positions: By set, where in it the measured examples stand: (examples,).
    """

    run: Run
    sets: Mapping[str, MapDataset]
    positions: Mapping[str, NDArray[np.int64]]
    relearning: RelearningTest | None
    probes: Probes
    bits: tuple[int, ...]
    reworded: Mapping[str, MapDataset]
    near: MapDataset | None
    gallery: Gallery | None = None

    @classmethod
    def prepare(
        cls,
        run: Run,
        original: nn.Module,
        sets: Mapping[str, MapDataset],
        settings: AuditSettings,
        network: FeatureNetwork | None = None,
    ) -> "Sitting":
        """Draw the examples of each set, what is relearned, and the neighbours of the forget set."""
        positions = {name: _sample(run, name, len(data), settings.examples) for name, data in sets.items()}
        samples = {name: subset(data, positions[name]) for name, data in sets.items()}
        forget, retain, count = samples[FORGET], samples["retain"], settings.neighbours
        return cls(
            run,
            samples,
            {name: chosen.numpy() for name, chosen in positions.items()},
            RelearningTest.prepare(settings.relearning, run, sets[FORGET], sets["retain"]),
            Probes.prepare(run, forget, retain),
            settings.bits,
            reworded(run, original, forget) if settings.rewording else {},
            neighbours(run, original, forget, retain, count) if count else None,
            Gallery.prepare(run, samples, settings.pictures, network),
        )

    def portray(self, model: nn.Module) -> Portrait:
        """Measure one model."""
        outputs = torch.cat(over_batches(self.run, model, self.sets[FORGET], self.run.task.outputs))
        return Portrait(
            {name: self._observe(model, data) for name, data in self.sets.items()},
            outputs,
            {} if self.relearning is None else self.relearning.curves(model),
            self.probes.recognised(model),
            {bits: self._headline(quantised(model, bits), self.sets[FORGET]) for bits in self.bits},
            {name: self._quality(model, rows, "probability") for name, rows in self.reworded.items()},
            None if self.near is None else self._headline(model, self.near),
            None if self.gallery is None else self.gallery.restore(model),
        )

    def signals(self, model: nn.Module) -> dict[str, Floats]:
        """What a membership attack looks at, on every set: (examples,) each."""
        return {
            name: torch.cat(over_batches(self.run, model, data, self.run.task.signal)).double().numpy()
            for name, data in self.sets.items()
        }

    def _headline(self, model: nn.Module, dataset: MapDataset) -> Floats:
        task = self.run.task
        pieces = over_batches(self.run, model, dataset, lambda m, b: next(iter(task.quality(m, b).values())))
        return torch.cat(pieces).double().numpy()

    def _quality(self, model: nn.Module, dataset: MapDataset, name: str) -> Floats:
        pieces = over_batches(self.run, model, dataset, lambda m, b: self.run.task.quality(m, b)[name])
        return torch.cat(pieces).double().numpy()

    def _observe(self, model: nn.Module, dataset: MapDataset) -> Observation:
        task = self.run.task
        pieces = over_batches(self.run, model, dataset, lambda m, b: _seen(task, m, b))
        answered = [piece.answered for piece in pieces if piece.answered is not None]
        return Observation(
            _joined([piece.quality for piece in pieces]),
            np.concatenate([piece.groups for piece in pieces]),
            np.concatenate([piece.signals for piece in pieces]),
            _joined([piece.scores for piece in pieces]),
            np.concatenate(answered) if answered else None,
        )


def _seen(task: Task, model: nn.Module, batch: Batch) -> Observation:
    with asked_once() if type(task) in _READ_OFF_OUTPUTS else nullcontext():
        amounts = task.answers(task.outputs(model, batch))
        quality, signal, losses = task.quality(model, batch), task.signal(model, batch), task.losses(model, batch)
    groups = np.asarray(list(task.groups(batch)))
    kinds, shares = np.asarray(list(amounts)), np.empty((len(groups), 0))
    if amounts:
        shares = torch.stack(list(amounts.values()), 1).double().cpu().numpy()
    return Observation(
        {name: _array(values) for name, values in quality.items()},
        groups,
        _array(signal),
        _scores(kinds, shares, groups) | {LOSS: -_array(losses)},
        kinds[shares.argmax(1)] if amounts else None,
    )


def _scores(kinds: NDArray[np.str_], shares: Floats, groups: NDArray[np.str_]) -> dict[str, Floats]:
    """Scores from the probabilities of the answers, where these are probabilities and the groups are answers."""
    if not shares.size or not np.isin(groups, kinds).all() or not np.allclose(shares.sum(1), 1, rtol=0, atol=1e-3):
        return {}
    places = {kind: place for place, kind in enumerate(kinds.tolist())}
    return baseline_scores(shares, [places[group] for group in groups.tolist()])


def _joined(pieces: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    shared = [name for name in pieces[0] if all(name in piece for piece in pieces)]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in shared}


def _array(values: Tensor) -> Floats:
    return values.double().cpu().numpy()


def _sample(run: Run, name: str, length: int, count: int) -> Tensor:
    if length <= count:
        return torch.arange(length)
    return torch.randperm(length, generator=generator(run.seed, "sample", name))[:count].sort().values
