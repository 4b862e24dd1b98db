"""Runs on text that a test kills.

Every forward pass is held up for a few milliseconds, and leaves a mark in a file, so that the test knows how far it is.
"""

import hashlib
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

import tiny
import words
from expunge import CausalLM, Method, Problem, unlearn
from expunge.methods import NPO, GradientReversal, LoraSettings, Retrain
from expunge.states import GradientLog, log_training
from expunge.storage import digest_model, read_tensors, write_tensors
from expunge.training import CheckpointFolder, Execution, Run

LOGGED = "recipe, logged"
_NPO = NPO(1e-3, epochs=5, batch_size=3, retain_loss="kl")
CASES: dict[str, Method] = {
    "recipe": Retrain(),
    "npo": _NPO,
    "npo, lora": replace(_NPO, adapter=LoraSettings(rank=2)),
    "gradient-reversal": GradientReversal(
        target_loss=2.2, overshoot=0.4, start=1e-3, growth=1.1, repair_steps=20, repair_learning_rate=1e-3
    ),
}
_OFTEN = Execution(device="cpu", progress=False, checkpoint_seconds=0)


class Slow(CausalLM):
    """Holds up every forward pass and counts it in a file."""

    seconds = 0.0
    marks: Path | None = None

    def predictions(self, model: nn.Module, batch: Any) -> Any:
        """What the model predicts, later."""
        if Slow.marks is not None:
            with Slow.marks.open("ab") as file:
                file.write(b".")
        time.sleep(Slow.seconds)
        return super().predictions(model, batch)


def prepare(folder: Path) -> None:
    """Train the original with its log, once."""
    model, _ = log_training(words.recipe(epochs=4), words.facts(), Run(words.TASK, 0, tiny.QUIET), folder / "log")
    write_tensors(folder / "original.safetensors", model.state_dict())


def the_problem(prepared: Path) -> Problem:
    """The same bits in every process."""
    task = Slow(words.tokenizer())
    trained = words.gpt2().eval()
    trained.load_state_dict(read_tensors(prepared / "original.safetensors")[0])
    recipe = replace(words.recipe(epochs=8), task=task)
    return replace(words.problem(trained, recipe=recipe, state=GradientLog.open(prepared / "log")), task=task)


def main(case: str, folder: Path, prepared: Path, *, seconds: float = 0.02, resume: bool) -> str:
    """Run a case to its end and return the digest of the result."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    Slow.seconds = 0.0
    if case == LOGGED:
        return _logged(folder, seconds)
    problem = the_problem(prepared)
    Slow.seconds, Slow.marks = seconds, folder / "passes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so short a training overwrites much, which a reversal says
        result = unlearn(problem, CASES[case], seed=11, execution=_OFTEN, checkpoint_dir=folder, resume=resume)
    return result.record.result_digest


def _logged(folder: Path, seconds: float) -> str:
    """Model and log of a training by the recipe."""
    task = Slow(words.tokenizer())
    Slow.seconds, Slow.marks = seconds, folder / "passes"
    recipe = replace(words.recipe(epochs=8), task=task)
    run = Run(task, 5, _OFTEN, CheckpointFolder(folder, "the run"))
    model, log = log_training(recipe, words.facts(), run, folder / "log")
    entries = sorted((r.kind, r.example, r.epoch, r.step, r.checksum) for r in log.store.records)
    return f"{digest_model(model)} {hashlib.sha256(repr(entries).encode()).hexdigest()}"


def send(connection: Any, case: str, folder: str, prepared: str, *, resume: bool) -> None:
    """Run a case and send the digest to another process."""
    connection.send(main(case, Path(folder), Path(prepared), resume=resume))
