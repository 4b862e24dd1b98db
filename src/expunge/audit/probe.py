"""What the features still know of the forget set: how often a simple reader of them recognises its examples.

A model whose last layer was masked answers like a retrained one, and after some relearning both do well. Told apart
they are by how little it takes: features that were trained on a kind recognise it after a single example.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from expunge.data import MapDataset, subset
from expunge.tasks import Batch
from expunge.training import Run, over_batches
from expunge.training.seeds import generator

ONE_SHOT, LINEAR = "one-shot probe", "linear probe"
_DRAWS, _KEPT, _RIDGE, _FOLDS, _DEAD = 50, 2000, 0.1, 2, 1e-6

Floats = NDArray[np.float64]
Names = NDArray[np.str_]


@dataclass(frozen=True)
class Probes:
    """The probes with their examples drawn, the same for every model."""

    run: Run
    forget: MapDataset
    kept: MapDataset

    @classmethod
    def prepare(cls, run: Run, forget: MapDataset, retain: MapDataset) -> "Probes":
        """Draw the retained examples that stand for the kinds that are kept."""
        drawn = torch.randperm(len(retain), generator=generator(run.seed, "probe"))[:_KEPT]
        return cls(run, forget, subset(retain, drawn.sort().values))

    def recognised(self, model: nn.Module) -> dict[str, Floats]:
        """For each probe that can be made, how often each forget example is recognised: (examples,).

        `one-shot probe`, where kinds were forgotten as a whole and each has two examples at least: the share of draws
        in which it is recognised. In a draw one example of each forgotten kind stands for its kind, the mean of the
        retained examples for each kept kind; the nearest wins, by Mahalanobis distance with the covariance within kept
        kinds plus a tenth of the features' variance.

        `linear probe`, where there are two forget examples and two kinds at least: whether a ridge classifier on
        standardised features, fitted on the retained examples and the other half of the forget set, names its kind.
        """
        forgotten, kinds = self._features(model, self.forget)
        kept, kept_kinds = self._features(model, self.kept)
        gone = sorted(set(kinds.tolist()) - set(kept_kinds.tolist()))
        found: dict[str, Floats] = {}
        if set(gone) == set(kinds.tolist()) and all((kinds == kind).sum() > 1 for kind in gone):
            found[ONE_SHOT] = _one_shot(forgotten, kinds, kept, kept_kinds, np.random.default_rng(self.run.seed))
        if len(kinds) > 1 and len({*kinds.tolist(), *kept_kinds.tolist()}) > 1:
            found[LINEAR] = _linear(forgotten, kinds, kept, kept_kinds, np.random.default_rng(self.run.seed))
        return found

    def _features(self, model: nn.Module, dataset: MapDataset) -> tuple[Floats, Names]:
        def measure(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, list[str]]:
            return self.run.task.features(model, batch).double(), list(self.run.task.groups(batch))

        pieces = over_batches(self.run, model, dataset, measure)
        groups = np.asarray([group for piece in pieces for group in piece[1]])
        return torch.cat([piece[0] for piece in pieces]).numpy(), groups


def _one_shot(forgotten: Floats, kinds: Names, kept: Floats, kept_kinds: Names, random: np.random.Generator) -> Floats:
    names, places = np.unique(kept_kinds, return_inverse=True)
    centres = np.stack([kept[places == place].mean(0) for place in range(len(names))])
    scale = kept.std(0)
    # a unit that is dead on kept kinds would decide everything if it were scaled by what it does there
    scale = np.where(scale > _DEAD * scale.max(), scale, np.concatenate([kept, forgotten]).std(0) + _DEAD)
    within = (kept - centres[places]) / scale
    covariance = within.T @ within / len(within) + _RIDGE * np.eye(len(scale))
    whiten = np.linalg.inv(np.linalg.cholesky(covariance)).T / scale[:, None]
    points = forgotten @ whiten
    nearest_kept = _distances(points, centres @ whiten).min(1)
    gone, own = np.unique(kinds, return_inverse=True)
    hits, seen = np.zeros(len(points)), np.zeros(len(points))
    for _ in range(_DRAWS):
        shown = np.array([random.choice(np.flatnonzero(own == kind)) for kind in range(len(gone))])
        distances = _distances(points, points[shown])
        right = (distances.argmin(1) == own) & (distances.min(1) < nearest_kept)
        tested = np.ones(len(points), dtype=bool)
        tested[shown] = False
        hits, seen = hits + (right & tested), seen + tested
    return hits / np.maximum(seen, 1)


def _linear(forgotten: Floats, kinds: Names, kept: Floats, kept_kinds: Names, random: np.random.Generator) -> Floats:
    fold = random.permutation(len(kinds)) % _FOLDS
    right = np.zeros(len(kinds))
    for tested in range(_FOLDS):
        shown = fold != tested
        features, labels = np.concatenate([kept, forgotten[shown]]), np.concatenate([kept_kinds, kinds[shown]])
        probe = cast(Any, make_pipeline(StandardScaler(), RidgeClassifier(_RIDGE * len(labels))))
        right[~shown] = probe.fit(features, labels).predict(forgotten[~shown]) == kinds[~shown]
    return right


def _distances(points: Floats, centres: Floats) -> Floats:
    """Squared Euclidean distances: (points, centres)."""
    cross = points @ centres.T
    return np.square(points).sum(1)[:, None] - 2 * cross + np.square(centres).sum(1)
