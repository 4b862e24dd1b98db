"""A masked autoencoder of MNIST forgets the digits 3 and 7: methods beside models retrained without them.

Run it as `make bench BENCH=i2i`, with EXPUNGE_DATA_DIR naming a folder that holds mnist.npz. A cell is a model of one
seed; those in the results file are not computed again, so an interrupted run goes on.
"""

# pyright: reportUnknownMemberType=false

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import ViTMAEConfig

from _cifar10 import Size
from _results import Results, size_from_arguments
from expunge import (
    Classification,
    Execution,
    Extrapolate,
    FineTune,
    ImageToImage,
    LatentRemap,
    MaxLoss,
    Method,
    NoisyLabel,
    Optimizer,
    Problem,
    RandomEncoder,
    RetainLabel,
    Stage,
    Supervised,
    split,
    unlearn,
)
from expunge.audit.feature_networks import FeatureNetwork, classifier_network
from expunge.audit.image_figures import ImageMeasures
from expunge.audit.images import measure_images
from expunge.corruptions import CentreCrop, Corruption, RandomMask
from expunge.data import MapDataset, subset
from expunge.image_models import MaskedAutoencoder, masked_autoencoder
from expunge.networks import small_cnn
from expunge.training import Algorithm, Run, Schedule, Term, over_batches

FORGOTTEN = (3, 7)
ORACLES = 2
PROXY = (0, 1, 2, 4)  # digits that stand in for those to be kept
QUIET = Execution(device="cpu", progress=False)
CORRUPTIONS: dict[str, Corruption] = {"centre crop": CentreCrop(3 / 7), "random mask": RandomMask(4, 0.5)}
SHAPE: dict[str, Any] = {
    "image_size": 28, "patch_size": 4, "num_channels": 1, "mask_ratio": 0.6, "initializer_range": 0.05,
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 192,
    "decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
}  # fmt: skip
BATCH, RATE, MEASURED = 64, 3e-3, 500
PASSES = 3  # times the epochs of a size: after 600 steps a model restores no more than the mean image
RELEARNING = {"images": 64, "steps": 20, "learning_rate": 1e-3}
UNLEARNING: dict[str, Any] = {"batch_size": BATCH, "epochs": 1}
RATES, WEIGHTS, RETAINED = {"remap": 1e-3, "baseline": 1e-3}, (0.05, 0.2, 1.0), (100, 400, 1600)


def methods() -> dict[str, tuple[Method, str]]:
    """By row: a method, and what it may see besides the forget set: `retain`, `proxy`, `none`, or so many images."""
    remap = LatentRemap(learning_rate=RATES["remap"], **UNLEARNING)
    towards = LatentRemap(target="extrapolation", forget_weight=1.0, learning_rate=1e-3, tuning_epochs=1, **UNLEARNING)
    rows: dict[str, tuple[Method, str]] = {
        "remap, real retain": (remap, "retain"),
        "remap, proxy": (replace(remap, held="surrogate"), "proxy"),
        "remap, forget only": (replace(remap, held="none", epochs=4), "none"),
        "remap oracle, real retain": (towards, "retain"),
        "remap oracle, proxy": (replace(towards, held="surrogate"), "proxy"),
        "extrapolated tuning": (Extrapolate(batch_size=BATCH, epochs=1), "retain"),
        "control: fine-tune": (FineTune(stages=(Stage(RATE, epochs=1),)), "retain"),
    }
    for kind in (MaxLoss, NoisyLabel, RetainLabel, RandomEncoder):
        rows[f"baseline: {kind.__name__}"] = (kind(learning_rate=RATES["baseline"], **UNLEARNING), "retain")
    for weight in WEIGHTS:
        rows[f"alpha {weight:g}"] = (replace(remap, forget_weight=weight), "retain")
    for count in RETAINED:
        rows[f"{count} retained"] = (remap, str(count))
    return rows


def main() -> None:
    """Compute what is missing, print the table, draw the sweeps."""
    torch.set_num_threads(1)
    size = size_from_arguments(str(__doc__))
    settings = {
        "shape": SHAPE,
        "passes": PASSES,
        "unlearning": UNLEARNING,
        "rates": RATES,
        "relearning": RELEARNING,
        "oracles": ORACLES,
    }
    results = Results("i2i", size, settings)
    for seed in range(size.seeds):
        original = cache(partial(trained, size, seed, forgotten=False))
        results.cell(f"{seed}: original", lambda original=original: figures(size, original()))
        for number in range(ORACLES):
            results.cell(
                f"{seed}: oracle {number}",
                lambda seed=seed, number=number: figures(
                    size, trained(size, 100 + ORACLES * seed + number, forgotten=True)
                ),
            )
        for row, (method, seen) in methods().items():
            results.cell(f"{seed}: {row}", partial(unlearned, size, original, method, seen, seed))
    table(results, size)
    draw(results, size)


@cache
def load(size: Size, name: str) -> TensorDataset:
    """So many digits of each class: images (examples, 1, 28, 28) in [0, 1], and labels."""
    root = os.environ.get("EXPUNGE_DATA_DIR")
    if not root or not (Path(root) / "mnist.npz").exists():
        raise SystemExit("set EXPUNGE_DATA_DIR to a folder that holds mnist.npz")
    with np.load(Path(root) / "mnist.npz", allow_pickle=False) as arrays:
        images, labels = arrays[f"x_{name}"], arrays[f"y_{name}"]
    count = size.train_per_class if name == "train" else size.test_per_class
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == digit)[:count] for digit in range(10)]))
    return TensorDataset(
        torch.from_numpy(images[chosen])[:, None].float() / 255, torch.from_numpy(labels[chosen]).long()
    )


def task(corruption: str = "centre crop") -> ImageToImage:
    """What the model is for."""
    return ImageToImage(MaskedAutoencoder(), CORRUPTIONS[corruption])


def untrained() -> nn.Module:
    """A masked autoencoder of some 450,000 parameters."""
    return masked_autoencoder(ViTMAEConfig(**SHAPE))


@cache
def judge(size: Size) -> FeatureNetwork:
    """A classifier of all ten digits."""
    known = Classification(10)
    model = Supervised(partial(small_cnn, 1, 10), known, epochs=4, execution=QUIET)(load(size, "train"), 0)
    return classifier_network(model, known, "a small CNN trained on these MNIST digits")


def trained(size: Size, seed: int, *, forgotten: bool) -> tuple[nn.Module, float]:
    """A model, and the seconds that its training took."""
    data = load(size, "train")
    recipe = Supervised(
        untrained, task(), PASSES * size.epochs, BATCH, Optimizer(RATE, schedule=Schedule.ONE_CYCLE), execution=QUIET
    )
    started = time.monotonic()
    model = recipe(split(data, classes=FORGOTTEN).retain if forgotten else data, seed)
    return model, time.monotonic() - started


def unlearned(
    size: Size, original: Callable[[], tuple[nn.Module, float]], method: Method, seen: str, seed: int
) -> dict[str, float]:
    """Figures of one method."""
    model, seconds = original()
    parts = split(load(size, "train"), classes=FORGOTTEN)
    retain: MapDataset | None = parts.retain if seen == "retain" else None
    if seen.isdecimal():
        order = torch.randperm(len(parts.retain), generator=torch.Generator().manual_seed(seed))
        retain = subset(parts.retain, order[: int(seen)])
    proxy = None
    if seen == "proxy":  # unseen digits of half of the kinds that are kept
        test = load(size, "test")
        proxy = subset(test, torch.isin(test.tensors[1], torch.tensor(PROXY)).nonzero()[:, 0])
    problem = Problem(model, task(), parts.forget, retain, classes=FORGOTTEN, surrogate=proxy)
    result = unlearn(problem, method, seed=seed, execution=QUIET)
    return figures(size, (result.model, result.record.seconds)) | {"cost": result.record.seconds / seconds}


def figures(size: Size, pair: tuple[nn.Module, float]) -> dict[str, float]:
    """Error and Fréchet distance on both sets, what a probe tells, and what relearning brings back."""
    model, seconds = pair
    parts = split(load(size, "train"), classes=FORGOTTEN)
    sets = {"forget": _some(parts.forget), "retain": _some(parts.retain)}
    found = {"seconds": seconds}
    for on, data in sets.items():
        for name in CORRUPTIONS:
            measured = restored(size, model, data, name)
            found[f"{on} error, {name}"] = measured.reconstruction_error
            found[f"{on} FID, {name}"] = float(measured.frechet_distance or 0)
    features = [_features(model, data) for data in sets.values()]
    kinds = np.repeat([1, 0], [len(each) for each in features])
    guess = cross_val_predict(
        LogisticRegression(max_iter=500), torch.cat(features).numpy(), kinds, cv=5, method="predict_proba"
    )
    return found | {
        "probe": float(roc_auc_score(kinds, guess[:, 1])),
        "relearned": relearned(size, model, parts.forget),
    }


def restored(size: Size, model: nn.Module, data: MapDataset, corruption: str) -> ImageMeasures:
    """Measures of what the model restores."""
    chosen = task(corruption)

    def seen(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        return chosen.reconstructions(model, batch), batch["images"], chosen.hidden(model, batch)

    pieces = over_batches(Run(chosen, 0, QUIET), model, data, seen)
    columns = (torch.cat([piece[place] for piece in pieces]) for place in range(3))
    return measure_images(*columns, network=judge(size), variant="projected")


def relearned(size: Size, model: nn.Module, forget: MapDataset) -> float:
    """Error on other forget images after a few steps on some of them."""
    run, count = Run(task(), 0, QUIET), int(RELEARNING["images"])
    student = run.copy(model)
    term = Term(subset(forget, torch.arange(count)), task().losses, batch_size=count)
    optimizer = Optimizer(RELEARNING["learning_rate"], Algorithm.ADAM)
    run.train("relearn", student, [term], optimizer, steps=int(RELEARNING["steps"]))
    others = subset(forget, torch.arange(count, min(len(forget), count + MEASURED)))
    return restored(size, student, others, "random mask").reconstruction_error


def table(results: Results, size: Size) -> None:
    """Means over seeds, as Markdown."""
    shown = [f"{on} {what}, {name}" for name in CORRUPTIONS for what in ("error", "FID") for on in ("forget", "retain")]
    shown += ["probe", "relearned", "cost"]
    print("| model | " + " | ".join(shown) + " |")
    for row in ("original", "oracle", *methods()):
        cells = _cells(results, size, row)
        values = [np.mean([cell[name] for cell in cells]) if name in cells[0] else 1.0 for name in shown]
        print(f"| {row} | " + " | ".join(f"{value:.3g}" for value in values) + " |")


def draw(results: Results, size: Size) -> None:
    """Error on both sets by alpha, and by how many images are held."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    sweeps = (("alpha", [f"alpha {weight:g}" for weight in WEIGHTS], WEIGHTS),
              ("retained images", [f"{count} retained" for count in RETAINED], RETAINED))  # fmt: skip
    for axes, (title, rows, places) in zip(figure.subplots(1, 2), sweeps, strict=True):
        for on, colour in (("forget", "#D55E00"), ("retain", "#0072B2")):
            name = f"{on} error, random mask"
            axes.plot(places, [np.mean([c[name] for c in _cells(results, size, row)]) for row in rows], "o-", c=colour)
            oracle = np.mean([cell[name] for cell in _cells(results, size, "oracle")])
            axes.axhline(oracle, color=colour, linestyle="--", label=f"{on}, oracle")
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.set_ylabel("error")
        axes.legend(frameon=False)
    figure.savefig(results.figure)


def _cells(results: Results, size: Size, row: str) -> list[dict[str, float]]:
    names = [f"{row} {number}" for number in range(ORACLES)] if row == "oracle" else [row]
    return [results.cells[f"{seed}: {name}"] for seed in range(size.seeds) for name in names]


def _some(data: MapDataset) -> MapDataset:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(5))
    return subset(data, order[:MEASURED].sort().values)


def _features(model: nn.Module, data: MapDataset) -> Tensor:
    return torch.cat(over_batches(Run(task(), 0, QUIET), model, data, task().features))


if __name__ == "__main__":
    main()
