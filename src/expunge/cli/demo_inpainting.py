"""The demonstration of images: a small masked autoencoder restores halves of digits, and forgets one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import ViTMAEConfig

from expunge.audit.evidence import EVIDENCE_FILE, Evidence
from expunge.audit.feature_networks import FeatureNetwork, classifier_network
from expunge.cli.demo import holdout_data, one_thread, training_data
from expunge.cli.demo_folder import clear_demonstration
from expunge.cli.job import JOB_FILE, Job
from expunge.cli.runs import CHECKPOINTS, Outcome, run_job
from expunge.cli.summary import outcome_json
from expunge.corruptions import HalfImage
from expunge.image_models import MaskedAutoencoder, masked_autoencoder
from expunge.networks import small_cnn
from expunge.report import REPORT_FILE
from expunge.storage import write_tensors
from expunge.tasks import Classification, ImageToImage
from expunge.training import Execution, Optimizer, Schedule, Supervised
from expunge.unlearning import KEY_FILE, RECORD_FILE

FACTS_FILE, WEIGHTS = "inpainting.json", "original.safetensors"

_MODULE = "expunge.cli.demo_inpainting"
_FORGOTTEN = 3
_SHAPE: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "mask_ratio": 0.5,
    "initializer_range": 0.05,  # with transformers' .02 so small a network learns hardly more than the mean digit
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64,
}
_EPOCHS, _BATCH, _RATE = 60, 64, 3e-3
_JUDGE_EPOCHS = 15
_METHOD: dict[str, Any] = {"name": "latent-remap", "learning_rate": 2e-3, "batch_size": 64}
_AUDIT: dict[str, Any] = {
    "network": f"{_MODULE}:features",
    "pictures": {"grid": "holdout", "variant": "projected"},
    "relearning": {"steps": [0, 5, 10, 20], "measured_on": 500},
    "bits": [8],
    "neighbours": 0,
    "executor": "in-process",
}
_FILES = (FACTS_FILE, JOB_FILE, WEIGHTS, RECORD_FILE, "model.safetensors", KEY_FILE, EVIDENCE_FILE, REPORT_FILE)


@dataclass(frozen=True)
class Restoring:
    """The whole demonstration: what the run came to, with its evidence."""

    outcome: Outcome
    evidence: Evidence


def run_inpainting(folder: Path, *, oracles: int, seed: int, say: Callable[[str], None]) -> Restoring:
    """Train, forget, audit and report; the folder then works with `expunge audit` and `expunge report`.

    Raises:
        OutputError: The folder cannot be written, or holds something other than an earlier demonstration.
    """
    _clear(folder)
    with one_thread():
        return _demonstrate(folder, oracles, seed, say)


def untrained() -> nn.Module:
    """A masked autoencoder of some 70,000 parameters for digits of 8 x 8 pixels."""
    return masked_autoencoder(ViTMAEConfig(**_SHAPE))


def features() -> FeatureNetwork:
    """A classifier of the ten digits, trained on the same data and unlearned by nobody."""
    task = Classification(10)
    quiet = Execution(progress=False)
    recipe = Supervised(partial(small_cnn, 1, 10), task, epochs=_JUDGE_EPOCHS, execution=quiet)
    return classifier_network(recipe(training_data(), 0), task, "a small CNN trained on all ten digits")


def restoring_json(story: Restoring) -> dict[str, Any]:
    """The story for programs."""
    found = [each.model_dump(mode="json") for each in story.evidence.restorations]
    return {"demonstration": "inpainting", "restorations": found, **outcome_json(story.outcome)}


def _demonstrate(folder: Path, oracles: int, seed: int, say: Callable[[str], None]) -> Restoring:
    digits = training_data()
    say(
        f"Training a small masked autoencoder to restore halves of {len(digits):,} handwritten digits, 8 x 8 pixels "
        f"each; {len(holdout_data()):,} more are held out"
    )
    task = ImageToImage(MaskedAutoencoder(), HalfImage("right"))
    model = Supervised(untrained, task, _EPOCHS, _BATCH, Optimizer(_RATE, schedule=Schedule.ONE_CYCLE))(digits, seed)
    write_tensors(folder / WEIGHTS, model.state_dict())
    say(f"Now the model is to forget the digit {_FORGOTTEN}")
    outcome = run_job(_job(folder, oracles, seed), folder, resume=False, say=say)
    return Restoring(outcome, Evidence.load(folder))


def _job(folder: Path, oracles: int, seed: int) -> Job:
    content = {
        "model": {"build": f"{_MODULE}:untrained", "weights": WEIGHTS},
        "data": {
            "train": {"python": "expunge.cli.demo:training_data"},
            "holdout": {"python": "expunge.cli.demo:holdout_data"},
        },
        "task": {
            "kind": "image-to-image",
            "family": "masked-autoencoder",
            "corruption": {"kind": "half-image", "side": "right"},
        },
        "forget": {"classes": [_FORGOTTEN]},
        "method": _METHOD,
        "recipe": {"epochs": _EPOCHS, "batch_size": _BATCH, "learning_rate": _RATE},
        "audit": {"oracles": oracles, **_AUDIT},
        "seed": seed,
        "output": ".",
    }
    return Job.model_validate(content).model_copy(update={"base": folder.absolute()})


def _clear(folder: Path) -> None:
    clear_demonstration(folder, FACTS_FILE, _FILES, (CHECKPOINTS,))
