"""Figures of an image-to-image model: what it restores, what its encoder holds, what comes back, and what it cost."""

# pyright: reportUnknownMemberType=false

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn

from _cifar10 import Size
from _i2i_worlds import QUIET, World, batch_of, judge
from expunge import Split, split
from expunge.audit.image_figures import ImageMeasures
from expunge.audit.images import measure_images
from expunge.data import MapDataset, subset
from expunge.storage import read_tensors, write_tensors
from expunge.training import Algorithm, Optimizer, Run, Term, over_batches

FOLDER = Path(__file__).parent / "cache" / "i2i"
RELEARNING = {"steps": 20, "learning_rate": 1e-3}
RETAINED_BY_ATTACKER = 448  # at least so many beside forget images, where a fresh decoder is trained

Restored = tuple[Tensor, Tensor, Tensor]
"""Pictures with the hidden part restored, the true ones, and what was hidden."""


@dataclass(frozen=True)
class Trained:
    """A model, and the processor time of its training, which other work on the machine changes less than its time."""

    model: nn.Module
    seconds: float


def timed(compute: Callable[[], nn.Module]) -> Trained:
    """A model and what it took to make it."""
    started = time.process_time()
    model = compute()
    return Trained(model, time.process_time() - started)


def parts(world: World, size: Size) -> Split:
    """What is forgotten, and what is kept."""
    return split(world.load(size)[0], classes=world.forgotten)


def train(world: World, size: Size, seed: int, *, forgotten: bool) -> Trained:
    """A model of all pictures, or of those that are kept; from the cache where it is there."""
    left = "-".join(map(str, world.forgotten)) if forgotten else "none"
    how = zlib.crc32(
        json.dumps([asdict(size), world.settings()], sort_keys=True).encode()
    )  # other settings, other file
    file = FOLDER / f"{world.name}-{size.name}-{how:08x}" / f"without-{left}-seed{seed}.safetensors"
    if file.exists():
        tensors, seconds = read_tensors(file)
        model = world.build(size)
        model.load_state_dict(tensors)
        return Trained(model.eval(), seconds)
    data = parts(world, size).retain if forgotten else world.load(size)[0]
    world.build(size)  # what is made once, such as a tokenizer, is no part of the time
    found = timed(lambda: world.recipe(size, len(data))(data, seed))
    write_tensors(file, found.model.state_dict(), found.seconds)
    return found


def figures(world: World, size: Size, found: Trained, references: list[Tensor]) -> dict[str, float]:
    """Error and Fréchet distance on both sets, what a probe tells, and what an attacker brings back.

    Args:
        world: Whose pictures.
        size: How many.
        found: The model.
        references: What oracles make of the forget set with the first corruption.
    """
    started, both = time.process_time(), parts(world, size)
    sets = measured_sets(world, size)
    first, restored = next(iter(world.corruptions)), partial(restorations, world, found.model)
    values = {"seconds": found.seconds, **restoration_figures(world, size, restored)}
    drawn = restored(sets["forget"], first)[0]
    values["distance"] = float(np.mean([apart(drawn, each) for each in references]))
    values["probe"] = probe(world, found.model, sets["forget"], sets["retain"])
    values["relearned"] = relearned(world, size, found.model, both)
    values["fresh decoder"] = decoded_afresh(world, size, found.model, both)
    return values | {"seconds of measuring": time.process_time() - started}


def restoration_figures(world: World, size: Size, restored: Callable[[MapDataset, str], Restored]) -> dict[str, float]:
    """Error and Fréchet distance on both sets, for each corruption."""
    values: dict[str, float] = {}
    for on, data in measured_sets(world, size).items():
        for name in world.corruptions:
            measures = measured(world, size, restored(data, name))
            values[f"{on} error, {name}"] = measures.reconstruction_error
            values[f"{on} FID, {name}"] = float(measures.frechet_distance or 0)
    return values


def mean_image(world: World, size: Size) -> dict[str, float]:
    """What the mean of all training pictures, put in the hidden part, comes to: a model that learned nothing else."""
    mean = world.load(size)[0].tensors[0].mean(0)

    def restored(data: MapDataset, corruption: str) -> Restored:
        batch = batch_of(world, data)
        hidden = world.corruptions[corruption].mask(batch["images"].shape, 0, batch["positions"])  # pyright: ignore
        return torch.where(hidden, mean, batch["images"]), batch["images"], hidden

    return restoration_figures(world, size, restored)


def measured_sets(world: World, size: Size) -> dict[str, MapDataset]:
    """The pictures of either set that every model is measured on."""
    both = parts(world, size)
    return {"forget": some(world, both.forget), "retain": some(world, both.retain)}


def some(world: World, data: MapDataset) -> MapDataset:
    """The same pictures for every model."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(5))
    return subset(data, order[: world.measured].sort().values)


def restorations(world: World, model: nn.Module, data: MapDataset, corruption: str) -> Restored:
    """What the model makes of pictures."""
    chosen = world.task(corruption)

    def seen(model: nn.Module, batch: dict[str, Tensor]) -> Restored:
        return chosen.reconstructions(model, batch), batch["images"], chosen.hidden(model, batch)

    pieces = over_batches(Run(chosen, 0, QUIET), model, data, seen)
    restored, truth, hidden = (torch.cat([piece[place] for piece in pieces]) for place in range(3))
    return restored, truth, hidden


def measured(world: World, size: Size, restored: Restored) -> ImageMeasures:
    """Error, and Fréchet distance on as many directions as the pictures allow."""
    return measure_images(*restored, network=judge(world, size), variant="projected")


def apart(one: Tensor, other: Tensor) -> float:
    """Mean squared difference of two models' restorations."""
    return float((one - other).square().mean())


def references(world: World, size: Size, models: list[nn.Module]) -> list[Tensor]:
    """What oracles make of the forget set with the first corruption."""
    data, first = some(world, parts(world, size).forget), next(iter(world.corruptions))
    return [restorations(world, model, data, first)[0] for model in models]


def probe(world: World, model: nn.Module, forget: MapDataset, retain: MapDataset) -> float:
    """Area under the curve of a linear probe that tells the two sets apart by the encoder's features."""
    sets = [torch.cat(over_batches(Run(world.task(), 0, QUIET), model, data, world.task().features))
            for data in (forget, retain)]  # fmt: skip
    kinds = np.repeat([1, 0], [len(each) for each in sets])
    guess = cross_val_predict(
        LogisticRegression(max_iter=500), torch.cat(sets).numpy(), kinds, cv=5, method="predict_proba"
    )
    return float(roc_auc_score(kinds, guess[:, 1]))


def relearned(world: World, size: Size, model: nn.Module, both: Split) -> float:
    """Error on other forget images after a few steps on some of them."""
    run = Run(world.task(), 0, QUIET)
    student, (known, others) = run.copy(model), _attacked(world, both.forget)
    term = Term(known, run.task.losses, batch_size=len(known))
    optimizer = Optimizer(RELEARNING["learning_rate"], Algorithm.ADAM)
    run.train("relearn", student, [term], optimizer, steps=int(RELEARNING["steps"]))
    return _error(world, student, others)


def decoded_afresh(world: World, size: Size, model: nn.Module, both: Split) -> float:
    """Error on other forget images by a fresh decoder, trained on some of them and on some retained ones."""
    run = Run(world.task(), 0, QUIET)
    student, (known, others) = run.copy(model), _attacked(world, both.forget)
    kept = subset(both.retain, torch.arange(len(both.retain))[:: max(1, len(both.retain) // RETAINED_BY_ATTACKER)])
    world.task().refit_head(student, [batch_of(world, known), batch_of(world, kept)])
    return _error(world, student, others)


def _attacked(world: World, forget: MapDataset) -> tuple[MapDataset, MapDataset]:
    """What an attacker has of the forget set, and others of it."""
    order = torch.randperm(len(forget), generator=torch.Generator().manual_seed(6))
    count = world.relearning
    return subset(forget, order[:count]), subset(forget, order[count : count + world.measured])


def _error(world: World, model: nn.Module, data: MapDataset) -> float:
    restored, truth, hidden = restorations(world, model, data, next(iter(world.corruptions)))
    return measure_images(restored, truth, hidden).reconstruction_error
