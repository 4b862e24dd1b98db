"""What image-to-image models restore, measured alike for every model of an audit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.audit.embedding_map import places_of
from expunge.audit.feature_networks import FeatureNetwork
from expunge.audit.image_figures import (
    FORGOTTEN_KIND,
    EmbeddingPlaces,
    FrechetVariant,
    ImageMeasures,
    PictureGrid,
    Restoration,
    Shown,
)
from expunge.audit.images import (
    against_oracles,
    fewest_pictures,
    frechet_closeness,
    measure_images,
    require_enough,
)
from expunge.audit.settings import PictureSettings
from expunge.audit.statistics import Quantity
from expunge.data import MapDataset, subset
from expunge.errors import MissingNeedError
from expunge.problem import forgotten_kinds
from expunge.tasks import ImageToImage
from expunge.tasks.image_to_image import ImageBatch
from expunge.training import Run, over_batches
from expunge.training.seeds import generator

MOST_SHOWN, MOST_PLACED = 8, 100

HOLDOUT = "holdout"

_GREY = 0.5


@dataclass(frozen=True)
class Restored:
    """What one model makes of the pictures.

    Attributes:
        measures: Of each set by name.
        shown: Of the pictures of the grid: (pictures, channels, height, width); None without a grid.
        frechet: Negative logarithm of the Fréchet distance of the forget set; None where it is not measured.
        embeddings: Features of some pictures by set, where their places are asked for: (pictures, features).
    """

    measures: Mapping[str, ImageMeasures]
    shown: Tensor | None
    frechet: Quantity | None
    embeddings: Mapping[str, Tensor]


@dataclass(frozen=True)
class Gallery:
    """The pictures that every model restores, and by what they are judged.

    Attributes:
        sets: By name.
        small: Names of sets that are too small for the measures of features.
        grid: The pictures that evidence keeps, if any.
    """

    run: Run
    task: ImageToImage
    sets: Mapping[str, MapDataset]
    small: frozenset[str]
    network: FeatureNetwork | None
    variant: FrechetVariant
    grid: MapDataset | None
    shows: Shown | None

    @classmethod
    def prepare(
        cls, run: Run, sets: Mapping[str, MapDataset], settings: PictureSettings, network: FeatureNetwork | None
    ) -> "Gallery | None":
        """Draw pictures of each set; None where the task restores none.

        Raises:
            MissingNeedError: Pictures of the holdout are to be shown, and there is none.
            DataError: A set has too few pictures for the Fréchet distance.
        """
        if not isinstance(run.task, ImageToImage):
            return None
        parts = dict(_parts(run.task, sets))
        if settings.grid is not None and settings.grid not in sets:
            raise MissingNeedError(
                "pictures of the holdout are to be shown: give the problem `holdout=` a dataset, or choose other ones"
            )
        chosen = {name: _drawn(run, name, data, settings.count) for name, data in parts.items()}
        small: set[str] = set()
        if network is not None:
            width = _width(run.task, network, chosen["forget"])
            for name, data in chosen.items():
                if name == FORGOTTEN_KIND and len(data) < fewest_pictures(width, settings.variant):
                    small.add(name)
                else:
                    require_enough(len(data), width, settings.variant)
        # of the holdout, those of the kind that is to be forgotten tell most
        shown = None if settings.grid is None else parts.get(FORGOTTEN_KIND if settings.grid == HOLDOUT else "")
        if settings.grid is not None:
            shown = _drawn(run, "grid", parts[settings.grid] if shown is None else shown, MOST_SHOWN)
        return cls(run, run.task, chosen, frozenset(small), network, settings.variant, shown, settings.grid)

    def restore(self, model: nn.Module) -> Restored:
        """Let one model restore all of them."""
        measures: dict[str, ImageMeasures] = {}
        embeddings: dict[str, Tensor] = {}
        frechet: Quantity | None = None
        for name, data in self.sets.items():
            restored, truth, hidden = self._seen(model, data)
            network = None if name in self.small else self.network
            features = None if network is None else (network.embed(restored), network.embed(truth))
            measures[name] = measure_images(
                restored, truth, hidden, network=network, variant=self.variant, features=features
            )
            if features is not None and name == "forget":
                frechet = frechet_closeness(*features, self.variant)
            if self.network is not None and name in self.placed:
                rows = torch.linspace(0, len(restored) - 1, min(len(restored), MOST_PLACED)).long()
                embeddings[name] = self.network.embed(restored[rows])
        shown = None if self.grid is None else self._seen(model, self.grid)[0]
        return Restored(measures, shown, frechet, embeddings)

    @property
    def placed(self) -> list[str]:
        """Sets whose places evidence keeps: the one whose pictures it keeps, and the holdout beside it.

        A place tells something of an example, so those of a training set are kept on the same demand as its pictures.
        """
        if self.shows is None:
            return []
        return [name for name in self.sets if name in (self.shows, HOLDOUT, FORGOTTEN_KIND)]

    def places(self, unlearned: Restored, original: Restored, oracle: Restored) -> EmbeddingPlaces | None:
        """Where what they restore lies in one plane; None without a network, or where none is to be shown."""
        models = {"original": original, "unlearned": unlearned, "oracle": oracle}
        if self.network is None or not self.placed:
            return None
        by_set = {name: {model: each.embeddings[name] for model, each in models.items()} for name in self.placed}
        return places_of(by_set, self.network.name, self.run.seed)

    def compared(self, unlearned: Restored, original: Restored, oracles: Sequence[Restored]) -> list[Restoration]:
        """The figures of every set, beside those of the oracles."""
        return [
            Restoration(
                on=name,
                unlearned=own,
                original=original.measures[name],
                beside=against_oracles(own, [oracle.measures[name] for oracle in oracles]),
            )
            for name, own in unlearned.measures.items()
        ]

    def side_by_side(
        self, model: nn.Module, unlearned: Restored, original: Restored, oracle: Restored
    ) -> PictureGrid | None:
        """Input, what each model makes of it, and the truth; None where no pictures are to be shown."""
        pairs = (("original", original.shown), ("unlearned", unlearned.shown), ("oracle", oracle.shown))
        drawn = {name: pictures for name, pictures in pairs if pictures is not None}
        if self.grid is None or self.shows is None or len(drawn) < len(pairs):
            return None
        _, truth, hidden = self._seen(model, self.grid)
        return PictureGrid.of(self.shows, {"input": truth.masked_fill(hidden, _GREY), **drawn, "truth": truth})

    def _seen(self, model: nn.Module, data: MapDataset) -> tuple[Tensor, Tensor, Tensor]:
        """Restored pictures, true ones, and what was hidden."""

        def seen(model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
            return self.task.reconstructions(model, batch), batch["images"], self.task.hidden(model, batch)

        pieces = over_batches(self.run, model, data, seen)
        restored, truth, hidden = (torch.cat([piece[place] for piece in pieces]) for place in range(3))
        return restored, truth, hidden


def _parts(task: ImageToImage, sets: Mapping[str, MapDataset]) -> Iterator[tuple[str, MapDataset]]:
    """Each set; of the holdout what is kept apart from what is of a kind that only the forget set has."""
    for name, data in sets.items():
        labels = task.labels_of(data) if name == HOLDOUT else None
        gone = forgotten_kinds(task, sets["forget"], sets["retain"])
        if labels is None or not len(gone):
            yield name, data
            continue
        forgotten = torch.isin(labels, gone)
        for part, chosen in ((name, ~forgotten), (FORGOTTEN_KIND, forgotten)):
            if bool(chosen.any()):
                yield part, subset(data, chosen.nonzero()[:, 0])


def _drawn(run: Run, name: str, data: MapDataset, count: int) -> MapDataset:
    if len(data) <= count:
        return data
    order = torch.randperm(len(data), generator=generator(run.seed, "pictures", name))
    return subset(data, order[:count].sort().values)


def _width(task: ImageToImage, network: FeatureNetwork, data: MapDataset) -> int:
    """How many features the network has."""
    return network.embed(task.collate([data[0]])["images"]).shape[1]
