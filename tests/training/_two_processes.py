"""What a test launches twice over: python _two_processes.py FOLDER; the main process writes every result there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from accelerate.utils import gather_object

import tiny
from expunge import UNSIR, Execution, Method, NegGradPlus, Problem, Stage, unlearn
from expunge.errors import SettingError
from expunge.methods import FineTune
from expunge.storage import write_json, write_tensors
from expunge.training import Run

METHODS: dict[str, Method] = {
    "unsir": UNSIR(
        noise_images=5, noise_steps=6, noise_penalty=0.1, noise_repeats=3, retain_per_class=11, batch_size=12
    ),
    "neg-grad-plus": NegGradPlus(epochs=2, batch_size=17, clip_norm=0.5),
    "fine-tune, micro batches": FineTune((Stage(0.05, epochs=2), Stage(0.01, steps=3)), batch_size=31),
}


def the_problem() -> Problem:
    """A model without BatchNorm, whose statistics would be those of half a batch."""
    data = tiny.vectors()
    torch.manual_seed(0)
    return tiny.problem(tiny.SHAPES["mlp"].build(), data)


def results(folder: Path) -> dict[str, tuple[torch.nn.Module, str]]:
    """Each method's model, and one that wrote checkpoints and was read back from them."""
    found: dict[str, tuple[torch.nn.Module, str]] = {}
    for name, method in METHODS.items():
        execution = Execution(device="cpu", progress=False, micro_batch_size=4 if "micro" in name else None)
        result = unlearn(the_problem(), method, seed=3, execution=execution)
        found[name] = result.model, f"{result.record.result_digest} {result.key.hex()}"
    often = Execution(device="cpu", progress=False, checkpoint_seconds=0.001)
    for resume in (False, True):
        result = unlearn(
            the_problem(), METHODS["unsir"], seed=3, execution=often, checkpoint_dir=folder / "kept", resume=resume
        )
        found[f"unsir, resumed {resume}"] = result.model, f"{result.record.result_digest} {result.key.hex()}"
    return found


def main(folder: Path) -> None:
    """Run everything, and let the main process write what all processes found."""
    torch.set_num_threads(1)
    found = results(folder)
    accelerator = Run(tiny.TASK, 0, tiny.QUIET).accelerator
    reports = gather_object([{name: report for name, (_, report) in found.items()}])
    refusal = ""
    try:
        unlearn(the_problem(), NegGradPlus(batch_size=1), execution=tiny.QUIET)
    except SettingError as error:
        refusal = str(error)
    if accelerator.is_main_process:
        write_json(folder / "reports.json", {"reports": reports, "refusal": refusal})
        write_tensors(folder / "models.safetensors", {name: tiny.flat(model) for name, (model, _) in found.items()})
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
