"""A run that a test kills: python _killed_run.py CASE FOLDER [resume]; the last line is the digest of the result.

Every step is held up for a few milliseconds, so that a kill lands inside a phase and not between two of them.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.data import TensorDataset

import tiny
from expunge import UNSIR, Execution, Method, NegGradPlus, Problem, Retrain, unlearn
from expunge.tasks import Classification

CASES: dict[str, tuple[str, Method]] = {
    "unsir": (
        "small_cnn",
        UNSIR(
            noise_images=8,
            noise_steps=20,
            noise_penalty=0.1,  # the network is untrained, and errs hardly more on noise than anywhere
            noise_repeats=8,
            retain_per_class=24,
            batch_size=8,
            repair_epochs=2,
        ),
    ),
    "neg-grad-plus": ("small_cnn", NegGradPlus(epochs=3, batch_size=8)),
    "retrain": ("ViT", Retrain()),
}


@dataclasses.dataclass(frozen=True)
class Slow(Classification):
    """Holds up every forward pass."""

    seconds: float = 0.01

    def outputs(self, model: Any, batch: Any) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().outputs(model, batch)


def the_problem(shape: str, seconds: float) -> Problem:
    """The same bits in every process."""
    kind, task = tiny.SHAPES[shape], Slow(tiny.CLASSES, seconds=seconds)
    data: TensorDataset = kind.data()
    torch.manual_seed(0)
    recipe = dataclasses.replace(tiny.recipe(kind), task=task, epochs=8)
    return dataclasses.replace(tiny.problem(kind.build(), data, recipe=recipe), task=task)


def main(case: str, folder: str, seconds: float = 0.01, *, resume: bool) -> str:
    """Run a case to its end and return the digest of the result."""
    torch.set_num_threads(1)
    shape, method = CASES[case]
    execution = Execution(device="cpu", progress=False, checkpoint_seconds=0)
    result = unlearn(
        the_problem(shape, seconds), method, seed=11, execution=execution, checkpoint_dir=folder, resume=resume
    )
    return result.record.result_digest


def send(connection: Any, case: str, folder: str, *, resume: bool) -> None:
    """Run a case and send the digest to another process."""
    connection.send(main(case, folder, resume=resume))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], resume="resume" in sys.argv), flush=True)
