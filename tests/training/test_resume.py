"""Runs that are killed go on to the bits they would have reached; what cannot be resumed is refused."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import _killed_run
import tiny
from _child import SERVER, Child, modified, served
from expunge import UNSIR, FineTune, NegGradPlus, Problem, Retrain, Stage, unlearn
from expunge.errors import CheckpointError, DivergedError, SavedModelError
from expunge.storage import digest_model
from expunge.training import Execution
from expunge.unlearning import KEY_FILE

OFTEN = Execution(device="cpu", progress=False, checkpoint_seconds=0)


SERVER.set_forkserver_preload(["_killed_run"])


def started(case: str, folder: Path, *, resume: bool) -> Child:
    return Child(_killed_run.send, case=case, folder=str(folder), resume=resume)


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with served():
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests that whole runs reach; how long a step takes and whether it saves changes nothing."""
    digests = {
        case: _killed_run.main(case, str(tmp_path_factory.mktemp(case)), seconds=0, resume=False)
        for case in _killed_run.CASES
    }
    assert len(set(digests.values())) == len(digests)
    return digests


KILLS = [
    ("unsir", ["00-noise"]),
    ("unsir", ["01-impair"]),
    ("unsir", ["02-repair"]),
    ("unsir", ["00-noise", "01-impair", "02-repair"]),
    ("neg-grad-plus", ["00-descend-and-ascend", "00-descend-and-ascend"]),
    ("retrain", ["00-train"]),
]


@pytest.mark.parametrize(
    ("case", "phases"), KILLS, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_killed_runs_reach_the_same_bits(
    case: str, phases: list[str], uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    moments = random.Random(f"{case} {phases}")
    order = ["00-noise", "01-impair", "02-repair"]
    for number, phase in enumerate(phases):
        checkpoint = tmp_path / f"{phase}.safetensors"
        before = modified(checkpoint)
        child = started(case, tmp_path, resume=number > 0)
        child.wait_until(lambda checkpoint=checkpoint, before=before: modified(checkpoint) > before)
        time.sleep(moments.uniform(0, 0.06))
        child.kill()
        following = order[order.index(phase) + 1 :] if phase in order else []
        assert not [name for name in following if (tmp_path / f"{name}.safetensors").exists()], "the kill came too late"
    assert started(case, tmp_path, resume=True).result() == uninterrupted[case]
    assert not list(tmp_path.glob(".expunge-partial-*"))


def test_a_run_that_is_killed_again_and_again_reaches_the_same_bits(
    uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    moments = random.Random(4)

    def newest() -> int:
        return max((modified(path) for path in tmp_path.glob("*.safetensors")), default=0)

    for kill in range(4):
        before = newest()
        child = started("unsir", tmp_path, resume=kill > 0)
        child.wait_until(lambda before=before: newest() > before)  # or it would be killed before it was under way
        time.sleep(moments.uniform(0, 0.15))
        child.kill()
    assert started("unsir", tmp_path, resume=True).result() == uninterrupted["unsir"]
    assert not list(tmp_path.glob(".expunge-partial-*"))


def test_a_killed_interpreter_reaches_the_same_bits(uninterrupted: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(Path(_killed_run.__file__)), "neg-grad-plus", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run([*command, "resume"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1:] == [uninterrupted["neg-grad-plus"]], done.stderr


def test_a_run_that_was_complete_is_read_back(mlp_problem: Problem, tmp_path: Path) -> None:
    method = FineTune((Stage(0.01, steps=3), Stage(0.02, steps=2)), batch_size=16)
    first = unlearn(mlp_problem, method, execution=OFTEN, checkpoint_dir=tmp_path)
    again = unlearn(mlp_problem, method, execution=OFTEN, checkpoint_dir=tmp_path, resume=True)
    assert digest_model(first.model) == digest_model(again.model)
    assert first.record.phases == again.record.phases
    assert first.record.data == again.record.data
    assert first.key == again.key


@pytest.fixture
def interrupted(mlp_problem: Problem, tmp_path: Path) -> tuple[Problem, NegGradPlus, Path]:
    """A folder with the checkpoint of a phase that broke off after three steps."""

    class Breaking:
        steps = 0

        def __call__(self, *arguments: Any) -> Any:
            self.steps += 1
            if self.steps > 8:  # two forward passes a step, and two that check the data
                raise KeyboardInterrupt
            return tiny.TASK.losses(*arguments)

    task = tiny.Classification(tiny.CLASSES)
    object.__setattr__(task, "losses", Breaking())
    method = NegGradPlus(epochs=4, batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        unlearn(dataclasses.replace(mlp_problem, task=task), method, execution=OFTEN, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["00-descend-and-ascend.safetensors"]
    return mlp_problem, method, tmp_path


def resume(problem: Problem, method: Any, folder: Path, seed: int = 0, execution: Execution = OFTEN) -> Any:
    return unlearn(problem, method, seed=seed, execution=execution, checkpoint_dir=folder, resume=True)


def test_an_interruption_by_an_exception_resumes_too(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    result = resume(problem, method, folder)
    assert digest_model(result.model) == digest_model(unlearn(problem, method, execution=OFTEN).model)
    assert len(result.record.phases[0].history) == result.record.phases[0].steps == 24


def test_resuming_where_nothing_was_saved_starts(mlp_problem: Problem, tmp_path: Path) -> None:
    method = NegGradPlus(epochs=1)
    result = resume(mlp_problem, method, tmp_path / "new" / "folder")
    assert digest_model(result.model) == digest_model(unlearn(mlp_problem, method, execution=OFTEN).model)


def test_checkpoints_are_not_overwritten_unasked(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        CheckpointError, match=r"already holds checkpoints; resume that run \(resume=True, --resume\) or"
    ):
        unlearn(problem, method, execution=OFTEN, checkpoint_dir=folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_another_seed_method_model_or_data_is_refused(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    other_model = tiny.recipe(tiny.SHAPES["mlp"])(problem.retain, 5)
    other_data = tiny.problem(problem.model, tiny.vectors(seed=9))
    for label, attempt in {
        "seed": lambda: resume(problem, method, folder, seed=1),
        "setting": lambda: resume(problem, dataclasses.replace(method, learning_rate=0.02), folder),
        "model": lambda: resume(dataclasses.replace(problem, model=other_model), method, folder),
        "data": lambda: resume(other_data, method, folder),
        "classes": lambda: resume(dataclasses.replace(problem, classes=()), method, folder),
    }.items():
        with pytest.raises(
            CheckpointError, match="belongs to a run with another model, method, seed or data"
        ) as failure:
            attempt()
        assert "or pass what the interrupted run was given" in str(failure.value), label
    assert resume(problem, method, folder).record.phases[0].steps == 24, "and the refused attempts did no harm"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 2}, "threads was 1 and is 2"),
        ({"precision": "bf16"}, "precision was no and is bf16"),
        ({"channels_last": True}, "channels_last was False and is True"),
        ({"micro_batch_size": 5}, "micro_batch_size was None and is 5"),
        ({"threads": 2, "channels_last": True}, "channels_last was False and is True, threads was 1 and is 2"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_other_conditions_are_refused_by_name(
    change: dict[str, Any], words: str, interrupted: tuple[Problem, NegGradPlus, Path]
) -> None:
    problem, method, folder = interrupted
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    with pytest.raises(
        CheckpointError, match=rf"made under other conditions, .* \({words}\); resume with the same `ex"
    ):
        resume(problem, method, folder, execution=dataclasses.replace(OFTEN, **change))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert resume(problem, method, folder).record.phases[0].steps == 24, "and the refused attempt did no harm"


@pytest.mark.parametrize("what", ["another processor", "another torch", "more processes"])
def test_another_machine_is_refused_by_name(
    what: str, interrupted: tuple[Problem, NegGradPlus, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, method, folder = interrupted
    if what == "another processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "9")
    elif what == "another torch":
        monkeypatch.setattr(torch, "__version__", torch.__version__ + "9")
    else:
        monkeypatch.setattr(Accelerator, "num_processes", 9)
    with pytest.raises(CheckpointError, match=r"(instructions|torch|processes) was [\w.+]+ and is [\w.+]*9\)"):
        resume(problem, method, folder)


def test_what_changes_no_bit_may_change(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    execution = Execution(device="cpu", progress=True, checkpoint_seconds=100, threads=1, workers=1)
    result = resume(problem, method, folder, execution=execution)
    assert digest_model(result.model) == digest_model(unlearn(problem, method, execution=OFTEN).model)


def test_another_method_starts_phases_of_its_own_name(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, _, folder = interrupted
    method = FineTune((Stage(0.01, steps=2),))
    result = resume(problem, method, folder)
    assert digest_model(result.model) == digest_model(unlearn(problem, method, execution=OFTEN).model)


def test_another_recipe_is_refused(mlp_problem: Problem, tmp_path: Path) -> None:
    recipe = tiny.recipe(tiny.SHAPES["mlp"], epochs=2)
    problem = dataclasses.replace(mlp_problem, recipe=recipe)
    unlearn(problem, Retrain(), execution=OFTEN, checkpoint_dir=tmp_path)
    longer = dataclasses.replace(problem, recipe=dataclasses.replace(recipe, epochs=3))
    with pytest.raises(CheckpointError, match="another recipe or other settings"):
        resume(longer, Retrain(), tmp_path)
    wider = dataclasses.replace(recipe, build=lambda: tiny.mlp(tiny.FEATURES, tiny.CLASSES, hidden=(9,)))
    with pytest.raises(CheckpointError, match="is of another network"):
        resume(dataclasses.replace(problem, recipe=wider), Retrain(), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped in the header", "flipped in the numbers", "text"])
def test_a_damaged_checkpoint_is_refused(damage: str, interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    path = folder / "00-descend-and-ascend.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "emptied": b"",
            "flipped in the header": flipped(whole, 60),
            "flipped in the numbers": flipped(whole, len(whole) - 5),
            "text": b"not a checkpoint",
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"cannot be read .*; delete that folder and start afresh"):
        resume(problem, method, folder)


def test_no_flipped_bit_goes_unnoticed(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    path = folder / "00-descend-and-ascend.safetensors"
    whole = path.read_bytes()
    reached = resume(problem, method, folder).record.result_digest
    moments = random.Random(0)
    refused = 0
    for _ in range(40):
        path.write_bytes(flipped(whole, moments.randrange(len(whole)), moments.randrange(8)))
        try:
            result = resume(problem, method, folder)
        except CheckpointError:
            refused += 1
        else:
            assert result.record.result_digest == reached, "a flip in padding or spelling may pass, but changes nothing"
    assert refused > 30


def flipped(content: bytes, position: int, bit: int = 3) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_a_lost_key_is_named(interrupted: tuple[Problem, NegGradPlus, Path]) -> None:
    problem, method, folder = interrupted
    key = folder / KEY_FILE
    key.unlink()
    key.mkdir()
    with pytest.raises(SavedModelError, match=r"forget\.key cannot be read .*; restore it from a copy"):
        resume(problem, method, folder)


@pytest.mark.parametrize("again", [True, False])
def test_what_a_killed_writer_left_is_removed(again: bool, mlp_problem: Problem, tmp_path: Path) -> None:
    stale = tmp_path / ".expunge-partial-0123456789abcdef"
    stale.write_bytes(b"half a checkpoint")
    unlearn(mlp_problem, NegGradPlus(epochs=1), execution=OFTEN, checkpoint_dir=tmp_path, resume=again)
    assert not stale.exists()


@dataclasses.dataclass
class Augmented:
    """Examples that are drawn anew at every reading."""

    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        value, label = self.data[index]
        return value + 0.1 * torch.randn(value.shape), label


def test_data_that_are_augmented_at_random_can_be_resumed(mlp_problem: Problem, tmp_path: Path) -> None:
    problem = dataclasses.replace(
        mlp_problem, forget=Augmented(mlp_problem.forget), retain=Augmented(mlp_problem.retain)
    )
    method = UNSIR(noise_images=4, noise_steps=2, retain_per_class=8, batch_size=8)
    whole = unlearn(problem, method, execution=OFTEN, checkpoint_dir=tmp_path)
    (tmp_path / "02-repair.safetensors").unlink()
    assert resume(problem, method, tmp_path).record.result_digest == whole.record.result_digest


def test_no_checkpoint_holds_a_diverged_model(mlp_problem: Problem, tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        unlearn(
            mlp_problem,
            FineTune((Stage(1e30, steps=40),), batch_size=16),
            execution=OFTEN,
            checkpoint_dir=tmp_path,
        )
    with pytest.raises(DivergedError):
        resume(mlp_problem, FineTune((Stage(1e30, steps=40),), batch_size=16), tmp_path)


def test_a_last_step_that_diverges_leaves_the_checkpoint_before_it(mlp_problem: Problem, tmp_path: Path) -> None:
    method = FineTune((Stage(0.01, steps=3), Stage(1e30, steps=1)), batch_size=16)
    with pytest.raises(DivergedError):
        unlearn(mlp_problem, method, execution=OFTEN, checkpoint_dir=tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    assert all(bool(torch.isfinite(each).all()) for each in load_file(kept).values())
