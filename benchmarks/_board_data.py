"""The leaderboard's data sets, its requests, and the models trained for them, each of them once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.utils.data import TensorDataset

import _cifar10
from expunge import Algorithm, Classification, Execution, Optimizer, Run, Schedule, Supervised, split
from expunge.networks import ResNet9, small_cnn
from expunge.storage import read_tensors, write_tensors
from expunge.training import CheckpointFolder, over_batches, reproducible
from expunge.training.seeds import generator

CACHE = Path(__file__).parent / "cache"
CLASS, RANDOM, MEMORISED, PERSON = "whole class", "random rows", "most memorised rows", "a person"
DEVELOPMENT, CONFIRMATION = "development", "confirmation"
QUIET = Execution(progress=False, threads=1)

_CLASSES = {
    (CLASS, DEVELOPMENT): 3, (CLASS, CONFIRMATION): 8, (PERSON, DEVELOPMENT): 3, (PERSON, CONFIRMATION): 25,
}  # fmt: skip
_FLEET_SEED = 500  # of the models that memorisation is estimated by
_ORACLE_SEEDS = {DEVELOPMENT: 200, CONFIRMATION: 300}


@dataclass(frozen=True)
class Board:
    """How much is computed.

    Attributes:
        name: Of the size.
        data: Names of the data sets.
        rows: Training rows of a data set at most.
        epochs: Of a training, for images of objects and digits.
        forgotten: Rows of a request for single rows.
        fleet: Models that memorisation is estimated by.
        seeds: Originals that every method is run on; none of them was used for choosing a rate.
        oracles: Of each request, and of each development request.
        budgets: Shares of a retrain.
        multiples: Of a method's published rate, that are tried on the development request.
    """

    name: str
    data: tuple[str, ...]
    rows: int
    epochs: int
    forgotten: int
    fleet: int
    seeds: tuple[int, ...]
    oracles: int
    budgets: tuple[float, ...]
    multiples: tuple[float, ...]

    @property
    def models(self) -> str:
        """What trained models depend on, for the name of their folder."""
        return f"{self.rows}-{self.epochs}-{self.forgotten}-{self.fleet}"


BOARDS = {
    "smoke": Board("smoke", ("digits",), 400, 10, 20, 4, (10, 11), 3, (0.2,), (1.0, 16.0)),
    "quick": Board(
        "quick", ("MNIST", "CIFAR-10", "ORL faces"), 3000, 10, 60, 20, (10, 11, 12, 13, 14), 5, (0.1, 0.2),
        (0.25, 1.0, 4.0, 16.0),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A data set and how models of it are trained: without augmentation, so that single rows are learned by heart.

    Attributes:
        name: Of the data set.
        train: Inputs and labels.
        holdout: The same, never trained on.
        recipe: How models are trained.
    """

    name: str
    train: TensorDataset
    holdout: TensorDataset
    recipe: Supervised

    @property
    def task(self) -> Classification:
        """What the models are for."""
        assert isinstance(self.recipe.task, Classification)
        return self.recipe.task


@dataclass(frozen=True)
class Request:
    """What is to be forgotten.

    Attributes:
        corpus: Name of the data set.
        kind: Of forget set.
        part: Development, on which rates are chosen, or confirmation, which the tables show.
    """

    corpus: str
    kind: str
    part: str

    @property
    def title(self) -> str:
        """As cells are called."""
        return f"{self.corpus} · {self.kind} · {self.part}"


@dataclass(frozen=True)
class Trained:
    """A model and what its training cost."""

    model: nn.Module
    seconds: float
    examples: int


@cache
def corpus(name: str, board: Board) -> Corpus:
    """A data set by name."""
    if name == "ORL faces":
        train, holdout = _faces()
        recipe = _recipe(partial(small_cnn, 1, 40, 16), 40, epochs=4 * board.epochs, batch_size=20)
        return Corpus(name, train, holdout, recipe)
    network = {
        "digits": partial(small_cnn, 1, 10, 8),
        "MNIST": partial(small_cnn, 1, 10, 16),
        "CIFAR-10": partial(ResNet9, 3, 10, 8),
    }[name]
    train, holdout = {"digits": _digits, "MNIST": _mnist, "CIFAR-10": _objects}[name](board.rows)
    recipe = _recipe(network, 10, epochs=board.epochs, batch_size=64)
    return Corpus(name, train, holdout, recipe)


def requests(board: Board, part: str = CONFIRMATION) -> list[Request]:
    """Every request of one part of the benchmark, those for whole classes first."""
    found = [Request(name, kind, part) for name in board.data for kind in kinds(name)]
    return sorted(found, key=lambda request: request.kind not in (CLASS, PERSON))


def kinds(name: str) -> tuple[str, ...]:
    """Of requests that a data set has."""
    return (PERSON,) if name == "ORL faces" else (CLASS, RANDOM, MEMORISED)


def classes_of(request: Request) -> tuple[int, ...]:
    """The class, or the person, that is to be forgotten; none of a request for single rows."""
    return (_CLASSES[request.kind, request.part],) if request.kind in (CLASS, PERSON) else ()


@cache
def forgotten(request: Request, board: Board) -> Tensor:
    """Positions of the forget set: (forget,). Those of development and confirmation share none."""
    data = corpus(request.corpus, board)
    if classes_of(request):
        return (data.train.tensors[1] == classes_of(request)[0]).nonzero().flatten()
    if request.kind == RANDOM:
        order = torch.randperm(len(data.train), generator=generator(0, "random rows"))
    else:
        order = memorisation(request.corpus, board).argsort(descending=True, stable=True)
    second = request.part == DEVELOPMENT
    return order[second * board.forgotten :][: board.forgotten].sort().values


@cache
def memorisation(name: str, board: Board) -> Tensor:
    """How much more of a row's label is known to models that saw the row: (rows,).

    The difference of the mean probability of the label between models trained on random halves with the row and those
    without it (Feldman and Zhang 2020, arXiv 2008.03703, who take the share of right answers of 4,000 models; the
    probability says more of few models).
    """
    data = corpus(name, board)
    inside, known = [], []
    for number in range(board.fleet):
        drawn = torch.rand(len(data.train), generator=generator(_FLEET_SEED, "half", number)) < 0.5
        model = trained(name, board, f"half-{number}", (~drawn).nonzero().flatten(), _FLEET_SEED + number).model
        probabilities = over_batches(
            Run(data.task, execution=QUIET), model, data.train, lambda m, b: data.task.losses(m, b).neg().exp()
        )
        inside.append(drawn)
        known.append(torch.cat(probabilities).cpu())
    seen, right = torch.stack(inside).double(), torch.stack(known).double()
    means = [(weight * right).sum(0) / weight.sum(0).clamp(min=1) for weight in (seen, 1 - seen)]
    return means[0] - means[1]


def original(request: Request, board: Board, seed: int) -> Trained:
    """The model of this seed that was trained on everything."""
    return trained(request.corpus, board, "all", torch.empty(0, dtype=torch.long), seed)


def oracle(request: Request, board: Board, number: int) -> Trained:
    """One of the models trained without the forget set; their seeds are no original's."""
    name = f"without-{request.kind.replace(' ', '-')}-{request.part}"
    return trained(request.corpus, board, name, forgotten(request, board), _ORACLE_SEEDS[request.part] + number)


def trained(name: str, board: Board, what: str, left_out: Sequence[int] | Tensor, seed: int) -> Trained:
    """The model of this seed trained without these rows; from the cache where it is there."""
    data = corpus(name, board)
    folder = CACHE / f"board-{board.name}-{board.models}-{name.replace(' ', '-')}" / f"{what}-seed{seed}"
    file = folder / "model.safetensors"
    if file.exists():
        tensors, cost = read_tensors(file)
        model = data.recipe.build()
        model.load_state_dict(tensors)
        return Trained(model.eval(), **cost)
    rows = split(data.train, indices=left_out).retain if len(left_out) else data.train
    checkpoints = CheckpointFolder(folder / "checkpoints", f"{board} {what} {seed}")
    checkpoints.open(resume=True)
    with reproducible(1):
        run = Run(data.task, seed, data.recipe.execution, checkpoints)
        model = data.recipe.fit(rows, run)
    (record,) = run.phases
    write_tensors(file, model.state_dict(), {"seconds": record.seconds, "examples": record.examples})
    return Trained(model.cpu(), record.seconds, record.examples)


def _recipe(build: partial[nn.Module], classes: int, *, epochs: int, batch_size: int) -> Supervised:
    optimizer = Optimizer(
        0.1, Algorithm.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4, schedule=Schedule.ONE_CYCLE
    )
    return Supervised(
        build, Classification(classes), epochs=epochs, batch_size=batch_size, optimizer=optimizer, execution=QUIET
    )


def _file(name: str) -> Path:
    root = os.environ.get("EXPUNGE_DATA_DIR")
    if not root or not (Path(root) / name).exists():
        raise SystemExit(f"set EXPUNGE_DATA_DIR to a folder that holds {name}")
    return Path(root) / name


def _mnist(rows: int) -> tuple[TensorDataset, TensorDataset]:
    with np.load(_file("mnist.npz")) as archive:
        parts = [(archive[f"x_{part}"][:count], archive[f"y_{part}"][:count])
                 for part, count in (("train", rows), ("test", rows // 2))]  # fmt: skip
    train, holdout = (
        TensorDataset((torch.from_numpy(x).float()[:, None] / 255 - 0.13) / 0.31, torch.from_numpy(y).long())
        for x, y in parts
    )
    return train, holdout


def _objects(rows: int) -> tuple[TensorDataset, TensorDataset]:
    return _cifar10.load(_cifar10.Size("board", rows // 10, rows // 20, 0, 0))


def _digits(rows: int) -> tuple[TensorDataset, TensorDataset]:
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x).float().reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(y).long()
    unseen = slice(max(rows, len(images) - rows), None)  # the last of them, and none that is trained on
    return TensorDataset(images[:rows], labels[:rows]), TensorDataset(images[unseen], labels[unseen])


def _faces() -> tuple[TensorDataset, TensorDataset]:
    """40 people; of each seven pictures to train on and three that are held out."""
    with np.load(_file("orl_faces.npz")) as archive:
        pictures, people = torch.from_numpy(archive["x"]), torch.from_numpy(archive["subject"]).long()
    small = avg_pool2d(pictures.float()[:, None], 4) / 128 - 1  # (400, 1, 28, 23)
    people = people - people.min()
    order = torch.stack([(people == person).nonzero().flatten() for person in range(40)])
    shown, kept = order[:, :7].flatten(), order[:, 7:].flatten()
    return TensorDataset(small[shown], people[shown]), TensorDataset(small[kept], people[kept])
