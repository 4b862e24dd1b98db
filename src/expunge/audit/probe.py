"""What the features still know of a forgotten kind: how often one example suffices to recognise the others.

A model whose last layer was masked answers like a retrained one, and after some relearning both do well. Told apart
they are by how little it takes: features that were trained on a kind recognise it after a single example.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge.data import MapDataset, subset
from expunge.tasks import Batch
from expunge.training import Run, over_batches
from expunge.training.seeds import generator

ONE_SHOT = "one-shot probe"
_DRAWS, _KEPT, _RIDGE = 50, 2000, 0.1


@dataclass(frozen=True)
class OneShotProbe:
    """The probe with its examples drawn, the same for every model."""

    run: Run
    forget: MapDataset
    kept: MapDataset

    @classmethod
    def prepare(cls, run: Run, forget: MapDataset, retain: MapDataset) -> "OneShotProbe":
        """Draw the retained examples that stand for the kinds that are kept."""
        drawn = torch.randperm(len(retain), generator=generator(run.seed, "probe"))[:_KEPT]
        return cls(run, forget, subset(retain, drawn.sort().values))

    def recognised(self, model: nn.Module) -> NDArray[np.float64] | None:
        """For each forget example, the share of draws in which it is recognised: (examples,).

        In a draw one example of each forgotten kind stands for its kind, the mean of the retained examples for each
        kept kind; the nearest wins, by Mahalanobis distance with the covariance within kept kinds plus a tenth of the
        features' variance. None where no kind was forgotten as a whole, or where a forgotten kind has one example.
        """
        forgotten, kinds = self._features(model, self.forget)
        kept, kept_kinds = self._features(model, self.kept)
        gone = sorted(set(kinds.tolist()) - set(kept_kinds.tolist()))
        if set(gone) != set(kinds.tolist()) or any((kinds == kind).sum() < 2 for kind in gone):
            return None
        return _recognised(forgotten, kinds, kept, kept_kinds, np.random.default_rng(self.run.seed))

    def _features(self, model: nn.Module, dataset: MapDataset) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
        def measure(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, list[str]]:
            return self.run.task.features(model, batch).double(), list(self.run.task.groups(batch))

        pieces = over_batches(self.run, model, dataset, measure)
        groups = np.asarray([group for piece in pieces for group in piece[1]])
        return torch.cat([piece[0] for piece in pieces]).numpy(), groups


def _recognised(
    forgotten: NDArray[np.float64],
    kinds: NDArray[np.str_],
    kept: NDArray[np.float64],
    kept_kinds: NDArray[np.str_],
    random: np.random.Generator,
) -> NDArray[np.float64]:
    names, places = np.unique(kept_kinds, return_inverse=True)
    centres = np.stack([kept[places == place].mean(0) for place in range(len(names))])
    scale = kept.std(0) + 1e-8
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


def _distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared Euclidean distances: (points, centres)."""
    cross = points @ centres.T
    return np.square(points).sum(1)[:, None] - 2 * cross + np.square(centres).sum(1)
