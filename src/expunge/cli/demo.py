"""The demonstration: a small network on scikit-learn's bundled digits forgets one of them."""

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from expunge.cli.job import JOB_FILE, Job
from expunge.cli.runs import Outcome, run_job
from expunge.errors import OutputError
from expunge.networks import small_cnn
from expunge.storage import ensure_writable, write_tensors
from expunge.tasks import Classification
from expunge.training import Supervised
from expunge.training.seeds import generator

WEIGHTS = "original.safetensors"

_MODULE = "expunge.cli.demo"
_FORGOTTEN = 3
_TRAINING_EXAMPLES = 1400
_EPOCHS = 15
_FILES = (JOB_FILE, WEIGHTS, "record.json", "model.safetensors", "forget.key", "evidence.json", "report.html")


def run_demo(folder: Path, *, oracles: int, seed: int, say: Callable[[str], None]) -> Outcome:
    """Train, forget, audit and report; the folder then works with `expunge audit` and `expunge report`.

    Raises:
        OutputError: The folder cannot be written, or holds something other than an earlier demonstration.
    """
    _clear(folder)
    with one_thread():
        return _demonstrate(folder, oracles, seed, say)


def training_data() -> TensorDataset:
    """Images (examples, 1, 8, 8) in [0, 1] and their digits."""
    return _digits()[0]


def holdout_data() -> TensorDataset:
    """The digits that are not trained on."""
    return _digits()[1]


def _demonstrate(folder: Path, oracles: int, seed: int, say: Callable[[str], None]) -> Outcome:
    say(
        f"Training a small network on {_TRAINING_EXAMPLES:,} handwritten digits, 8 x 8 pixels each; "
        f"{len(holdout_data()):,} more are held out"
    )
    recipe = Supervised(partial(small_cnn, 1, 10), Classification(10), epochs=_EPOCHS)
    model = recipe(training_data(), seed)
    write_tensors(folder / WEIGHTS, model.state_dict())
    job = _job(folder, oracles, seed)
    say(f"Now the network is to forget the digit {_FORGOTTEN}")
    return run_job(job, folder, resume=False, say=say)


@contextmanager
def one_thread() -> Generator[None]:
    """Work for so small a network is quicker done than shared, above all on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _digits() -> tuple[TensorDataset, TensorDataset]:
    bunch = cast(Any, load_digits())
    images = torch.as_tensor(bunch.images).float()[:, None] / 16
    labels = torch.as_tensor(bunch.target).long()
    order = torch.randperm(len(labels), generator=generator(0, "digits"))
    train, holdout = order[:_TRAINING_EXAMPLES], order[_TRAINING_EXAMPLES:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[holdout], labels[holdout])


def _job(folder: Path, oracles: int, seed: int) -> Job:
    content = {
        "model": {"network": "small-cnn", "options": {"channels": 1, "classes": 10}, "weights": WEIGHTS},
        "data": {
            "train": {"python": f"{_MODULE}:training_data"},
            "holdout": {"python": f"{_MODULE}:holdout_data"},
        },
        "task": {"classes": 10},
        "forget": {"classes": [_FORGOTTEN]},
        "method": {"name": "unsir"},
        "recipe": {"epochs": _EPOCHS},
        "audit": {"oracles": oracles},
        "seed": seed,
        "output": ".",
    }
    return Job.model_validate(content).model_copy(update={"base": folder.absolute()})


def _clear(folder: Path) -> None:
    """Remove an earlier demonstration; refuse a folder that holds anything else."""
    job = folder / JOB_FILE
    if folder.is_dir() and any(folder.iterdir()):
        leftovers = {path.name for path in folder.iterdir()} - {*_FILES, "checkpoints"}
        if leftovers or (job.exists() and f"{_MODULE}:" not in job.read_text(encoding="utf-8")):
            raise OutputError(
                f"{folder} holds files that are not of a demonstration; choose another folder with --output"
            )
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    ensure_writable(folder)
