"""What a test launches twice over: python _two_text_processes.py FOLDER WAY; the main process writes what was found.

WAY is `ddp`, `sharded` (FSDP2 on a CPU, which accelerate has to be talked into), or `launched` (what accelerate says).
"""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather_object
from torch import Tensor

import tiny
import words
from expunge import CausalLM, Execution, Method, Problem, unlearn
from expunge.errors import ExpungeError
from expunge.methods import (
    NPO,
    RMU,
    UNDIAL,
    GradDiff,
    GradientAscent,
    GradientReversal,
    IdkDPO,
    LoraSettings,
    Retrain,
    SimNPO,
    TaskNegation,
)
from expunge.states import GradientLog, log_training
from expunge.storage import read_tensors, write_json, write_tensors
from expunge.training import Run

QUIET = Execution(progress=False) if "launched" in sys.argv else tiny.QUIET
_SMALL: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4}
_NPO = NPO(**_SMALL)
CASES: dict[str, tuple[Method, Execution]] = {
    "recipe": (Retrain(), QUIET),
    "npo": (_NPO, QUIET),
    "npo, kl": (replace(_NPO, retain_loss="kl"), QUIET),
    "npo, lora": (replace(_NPO, adapter=LoraSettings(rank=2)), QUIET),
    "npo, micro batches": (_NPO, replace(QUIET, micro_batch_size=1)),
    "npo, recomputed": (_NPO, replace(QUIET, gradient_checkpointing=True)),
    "grad-diff": (GradDiff(**_SMALL), QUIET),
    "gradient-ascent": (GradientAscent(1e-3, epochs=2, batch_size=4), QUIET),
    "gradient-reversal": (
        GradientReversal(target_loss=2.2, overshoot=0.2, repair_steps=5, repair_learning_rate=1e-3),
        QUIET,
    ),
    "sim-npo": (SimNPO(**_SMALL), QUIET),
    "idk-dpo": (IdkDPO(**_SMALL, refusals=("not known .", "what is the job ?")), QUIET),
    "rmu": (RMU(**_SMALL), QUIET),
    "undial": (UNDIAL(**_SMALL), QUIET),
    "task-negation": (TaskNegation(**_SMALL, scale=1.0), QUIET),
}
RESUMED = "npo, broken off and resumed"

Found = dict[str, tuple[Tensor, list[float]]]
"""By name the parameters of a result, and the objective at each step."""


class Breaking(CausalLM):
    """Breaks off at the twelfth forward pass."""

    passes = 0

    def predictions(self, model: Any, batch: Any) -> Any:
        Breaking.passes += 1
        if Breaking.passes == 12:
            raise KeyboardInterrupt
        return super().predictions(model, batch)


def prepare(folder: Path) -> None:
    """Train a model with a log, once, in one process."""
    model, _ = log_training(words.recipe(epochs=4), words.facts(), Run(words.TASK, 0, QUIET), folder / "log")
    write_tensors(folder / "original.safetensors", model.state_dict())


def the_problem(folder: Path) -> Problem:
    """The prepared model and its log."""
    model = words.gpt2()
    model.load_state_dict(read_tensors(folder / "original.safetensors")[0])
    recipe = replace(words.recipe(epochs=2), execution=QUIET)
    return words.problem(model.eval(), recipe=recipe, state=GradientLog.open(folder / "log"))


def results(folder: Path, checkpoints: Path) -> Found:
    """What each case comes to, and a run that broke off and went on."""
    found: Found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so short a training overwrites much, which a reversal says
        for name, (method, execution) in CASES.items():
            found[name] = _result(the_problem(folder), method, execution)
        found[RESUMED] = _resumed(the_problem(folder), checkpoints)
    return found


def refusals(prepared: Path, folder: Path) -> dict[str, str]:
    """What several processes are refused, and in which words."""
    recipe = replace(words.recipe(epochs=1), execution=QUIET)
    return {
        "a log": _refusal(lambda: log_training(recipe, words.facts(), Run(words.TASK, 0, QUIET), folder / "refused")),
        "parting on a CPU": _refusal(_part_on_a_cpu),
        "two models": _refusal(lambda: unlearn(_another_model(the_problem(prepared)), _NPO, execution=QUIET)),
    }


def main(folder: Path, way: str) -> None:
    """Find everything, and let the main process write it."""
    torch.set_num_threads(1)
    if way == "sharded":
        _talk_accelerate_into_parting()
    found = results(folder, folder / way / "checkpoints")
    refused = refusals(folder, folder / way) if way == "ddp" else {}
    accelerator = QUIET.accelerator()
    sums = gather_object([{name: float(flat.double().sum()) for name, (flat, _) in found.items()}])
    if accelerator.is_main_process:
        report = {
            "processes": accelerator.num_processes,
            "kind": accelerator.distributed_type.value,
            "sums": sums,
            "losses": {name: losses for name, (_, losses) in found.items()},
            "refused": refused,
        }
        write_json(folder / way / "report.json", report)
        write_tensors(folder / way / "models.safetensors", {name: flat for name, (flat, _) in found.items()})
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


def _result(problem: Problem, method: Method, execution: Execution, **given: Any) -> tuple[Tensor, list[float]]:
    unlearned = unlearn(problem, method, seed=3, execution=execution, **given)
    losses = [loss for phase in unlearned.record.phases for loss in phase.history]
    return tiny.flat(unlearned.model).cpu(), losses


def _resumed(problem: Problem, folder: Path) -> tuple[Tensor, list[float]]:
    often = replace(QUIET, checkpoint_seconds=0)
    breaking = replace(problem, task=Breaking(words.TASK.tokenizer))
    Breaking.passes = 0
    try:
        unlearn(breaking, _NPO, seed=3, execution=often, checkpoint_dir=folder)
    except KeyboardInterrupt:
        QUIET.accelerator().wait_for_everyone()
        if not list(folder.glob("*.safetensors")):
            raise
    return _result(problem, _NPO, often, checkpoint_dir=folder, resume=True)


def _talk_accelerate_into_parting() -> None:
    QUIET.accelerator()
    AcceleratorState().fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
    )
    PartialState().distributed_type = DistributedType.FSDP


def _another_model(problem: Problem) -> Problem:
    with torch.no_grad():
        next(problem.model.parameters())[0, 0] += QUIET.accelerator().process_index
    return problem


def _part_on_a_cpu() -> None:
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        QUIET.accelerator()
    finally:
        del os.environ["ACCELERATE_USE_FSDP"]


def _refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ExpungeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
