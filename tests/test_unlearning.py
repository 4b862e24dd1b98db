"""From a request to a result: what is recorded, saved, and read back."""

import copy
import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import TensorDataset

import tiny
from expunge import (
    Certificate,
    Execution,
    GradientAscent,
    NegGradPlus,
    Problem,
    Record,
    Retrain,
    Tier,
    Unlearned,
    unlearn,
)
from expunge.data import digest_dataset
from expunge.errors import ForgetSetError, LabelError, ModelError, OutputError, SavedModelError
from expunge.storage import digest_model
from expunge.unlearning import KEY_FILE, MODEL_FILE, RECORD_FILE, read_record

METHOD = NegGradPlus(epochs=1, batch_size=16)


@pytest.fixture
def result(mlp_problem: Problem) -> Unlearned:
    return unlearn(mlp_problem, METHOD, seed=2, execution=tiny.QUIET)


@pytest.fixture
def saved(result: Unlearned, tmp_path: Path) -> Path:
    result.save(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT", "MobileNetV2"])
def test_what_is_saved_is_read_back(shape: str, trained: Callable[[str], Problem], tmp_path: Path) -> None:
    problem = trained(shape)
    result = unlearn(problem, METHOD, execution=tiny.QUIET)
    result.save(tmp_path)
    loaded = Unlearned.load(str(tmp_path), problem)
    assert digest_model(loaded.model) == digest_model(result.model)
    assert loaded.record == result.record == read_record(tmp_path)
    assert loaded.key == result.key
    assert not loaded.model.training
    assert torch.equal(tiny.logits(loaded.model, problem.forget), tiny.logits(result.model, problem.forget))
    assert loaded.started_from(problem.model), "loading leaves the original alone"


def test_three_files_and_a_private_key(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == sorted([MODEL_FILE, RECORD_FILE, KEY_FILE])
    assert stat.S_IMODE((saved / KEY_FILE).stat().st_mode) == 0o600
    assert (saved / KEY_FILE).read_bytes().hex() not in (saved / RECORD_FILE).read_text()


def test_saving_again_replaces_all_three(saved: Path, mlp_problem: Problem) -> None:
    again = unlearn(mlp_problem, METHOD, seed=3, execution=tiny.QUIET)
    again.save(saved)
    assert Unlearned.load(saved, mlp_problem).record == again.record


def test_loading_does_not_depend_on_what_this_process_computes_with(saved: Path, mlp_problem: Problem) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    unlearn(mlp_problem, METHOD, execution=Execution(device="cpu", precision="bf16", progress=False))
    assert Unlearned.load(saved, mlp_problem).record.seed == 2


def test_changed_weights_are_refused(saved: Path, result: Unlearned, mlp_problem: Problem) -> None:
    other = unlearn(mlp_problem, METHOD, seed=9, execution=tiny.QUIET)
    other.save(saved.parent / "other")
    (saved / MODEL_FILE).write_bytes((saved.parent / "other" / MODEL_FILE).read_bytes())
    with pytest.raises(SavedModelError, match=r"does not match record\.json: .*restore both files from the same run"):
        Unlearned.load(saved, mlp_problem)


@pytest.mark.parametrize("name", [MODEL_FILE, RECORD_FILE])
@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_truncated_files_are_refused(name: str, keep: float, saved: Path, mlp_problem: Problem) -> None:
    whole = (saved / name).read_bytes().rstrip()
    (saved / name).write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else int(keep)])
    with pytest.raises(SavedModelError, match=rf"{name} is damaged"):
        Unlearned.load(saved, mlp_problem)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (MODEL_FILE, "there is no file .*; pass the folder that the run was saved to"),
        (RECORD_FILE, "there is no .*; pass the folder that a run was saved to"),
        (KEY_FILE, "the key .* cannot be read .*; restore it from a copy"),
    ],
)
def test_missing_files_are_named(name: str, words: str, saved: Path, mlp_problem: Problem) -> None:
    (saved / name).unlink()
    with pytest.raises(SavedModelError, match=words):
        Unlearned.load(saved, mlp_problem)


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"surprise": 1}, {"seed": "x"}, {"guarantee": "certain"}])
def test_records_of_another_kind_are_refused(change: dict[str, Any], saved: Path) -> None:
    record = json.loads((saved / RECORD_FILE).read_text())
    (saved / RECORD_FILE).write_text(json.dumps(record | change))
    with pytest.raises(SavedModelError, match=r"record\.json is damaged or of another version"):
        read_record(saved)


@pytest.mark.parametrize(
    "name",
    sorted(
        set(Record.model_fields) - {"schema_version", "state", "classes", "certificate", "near_duplicates", "choice"}
    ),
)
def test_no_field_of_a_record_can_be_changed_unnoticed(name: str, saved: Path, mlp_problem: Problem) -> None:
    record = json.loads((saved / RECORD_FILE).read_text())
    record[name] = _changed(record[name])
    (saved / RECORD_FILE).write_text(json.dumps(record))
    read_record(saved)
    with pytest.raises(SavedModelError):
        Unlearned.load(saved, mlp_problem)


def test_a_certificate_cannot_be_added_and_a_seal_not_taken_away(saved: Path, mlp_problem: Problem) -> None:
    """The seal of somebody else's key, an empty one, and that of the record before the change."""
    record = read_record(saved)
    claimed = Certificate(tier=Tier.CERTIFIED, reference="retraining", neighbours="one row", epsilon=0.1, delta=1e-9)
    better = record.model_copy(update={"guarantee": Tier.CERTIFIED, "certificate": claimed})
    for forged in (better, better.sealed(b"somebody else's"), better.model_copy(update={"seal": ""})):
        (saved / RECORD_FILE).write_text(forged.model_dump_json())
        with pytest.raises(SavedModelError, match="its seal does not fit what it says"):
            Unlearned.load(saved, mlp_problem)
    (saved / RECORD_FILE).write_text(record.model_dump_json(indent=4))
    assert Unlearned.load(saved, mlp_problem).record == record, "how it is laid out does not count"


def _changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, dict):
        name = sorted(value)[0]
        return value | {name: _changed(value[name])}
    if isinstance(value, list):
        return value[:-1]
    if isinstance(value, str):
        return "exact" if value == "empirical" else ("3" if value[0] == "2" else "2") + value[1:]
    return value + 1


def test_another_original_is_refused(saved: Path, mlp_problem: Problem) -> None:
    other = copy.deepcopy(mlp_problem.model)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-6
    with pytest.raises(
        SavedModelError, match=r"the problem's model is not the original that .*load the weights that unl"
    ):
        Unlearned.load(saved, dataclasses.replace(mlp_problem, model=other))


def test_weights_of_another_network_are_refused(mlp_problem: Problem, tmp_path: Path) -> None:
    def recipe(_data: Any, seed: int) -> torch.nn.Module:
        return tiny.mlp(tiny.FEATURES, tiny.CLASSES, hidden=(5,))

    unlearn(dataclasses.replace(mlp_problem, recipe=recipe), Retrain(), execution=tiny.QUIET).save(tmp_path)
    with pytest.raises(SavedModelError, match="the saved weights do not fit the problem's model"):
        Unlearned.load(tmp_path, mlp_problem)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_nothing_behind(
    call: int, result: Unlearned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill_disk_at(call, monkeypatch)
    with pytest.raises(OutputError, match="the disk is full; free some space or choose another folder"):
        result.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_what_was_there(
    call: int, saved: Path, mlp_problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Unlearned.load(saved, mlp_problem).record
    again = unlearn(mlp_problem, METHOD, seed=3, execution=tiny.QUIET)
    _fill_disk_at(call, monkeypatch)
    with pytest.raises(OutputError):
        again.save(saved)
    assert Unlearned.load(saved, mlp_problem).record == before


def _fill_disk_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_while_checkpointing(mlp_problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill_disk_at(5, monkeypatch)  # the key and one checkpoint still fit, each a file and its folder
    often = dataclasses.replace(tiny.QUIET, checkpoint_seconds=0)
    with pytest.raises(OutputError, match="the disk is full"):
        unlearn(mlp_problem, NegGradPlus(epochs=2, batch_size=16), execution=often, checkpoint_dir=tmp_path)
    assert not list(tmp_path.glob(".expunge-partial-*"))
    monkeypatch.undo()
    resumed = unlearn(
        mlp_problem, NegGradPlus(epochs=2, batch_size=16), execution=often, checkpoint_dir=tmp_path, resume=True
    )
    whole = unlearn(mlp_problem, NegGradPlus(epochs=2, batch_size=16), execution=tiny.QUIET)
    assert resumed.record.result_digest == whole.record.result_digest


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(
    result: Unlearned, mlp_problem: Problem, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another folder"):
        result.save(tmp_path / "file" / "run")
    method = GradientAscent(1e30, epochs=50)  # would diverge if it ran
    with pytest.raises(OutputError, match="choose another folder"):
        unlearn(mlp_problem, method, execution=tiny.QUIET, checkpoint_dir=tmp_path / "file" / "run")


def test_the_key_verifies_what_was_forgotten_and_nothing_else_does(result: Unlearned, mlp_problem: Problem) -> None:
    digest = result.record.data["forget"].digest
    assert digest_dataset(mlp_problem.forget, result.key) == digest
    assert digest_dataset(mlp_problem.retain, result.key) != digest
    assert digest_dataset(mlp_problem.forget, b"") != digest
    assert digest_dataset(mlp_problem.forget, bytes(32)) != digest
    again = unlearn(mlp_problem, METHOD, seed=2, execution=tiny.QUIET)
    assert again.record.data["forget"].digest != digest
    assert again.key != result.key
    assert len(result.key) == 32


def test_nothing_secret_is_shown(result: Unlearned) -> None:
    assert result.key.hex() not in repr(result)
    assert str(result.key) not in repr(result)
    assert "tensor(" not in repr(result)


def test_holdout_data_are_recorded(mlp_problem: Problem) -> None:
    problem = dataclasses.replace(mlp_problem, holdout=tiny.vectors(per_class=3, seed=5))
    record = unlearn(problem, METHOD, execution=tiny.QUIET).record
    assert {name: entry.examples for name, entry in record.data.items()} == {"forget": 30, "retain": 90, "holdout": 12}


def test_a_model_that_is_broken_on_its_own_data_is_refused(mlp_problem: Problem) -> None:
    model = copy.deepcopy(mlp_problem.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    with pytest.raises(ModelError, match="a loss that is NaN or infinite on its own data; check the model"):
        unlearn(dataclasses.replace(mlp_problem, model=model), METHOD, execution=tiny.QUIET)


def test_threads_last_as_long_as_the_run(mlp_problem: Problem) -> None:
    before = torch.get_num_threads()
    execution = dataclasses.replace(tiny.QUIET, threads=before + 1)
    record = unlearn(mlp_problem, METHOD, execution=execution).record
    assert record.execution["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_numbers_of_numpy_are_recorded_as_numbers(mlp_problem: Problem, tmp_path: Path) -> None:
    method = NegGradPlus(epochs=np.float64(1), batch_size=np.int64(16))
    result = unlearn(mlp_problem, method, seed=np.int64(2), execution=tiny.QUIET)
    result.save(tmp_path)
    record = read_record(tmp_path)
    assert (record.settings["epochs"], record.settings["batch_size"], record.seed) == (1, 16, 2)
    assert digest_model(result.model) == digest_model(unlearn(mlp_problem, METHOD, seed=2, execution=tiny.QUIET).model)


@dataclasses.dataclass
class OneByOne:
    """Examples that can only be read one at a time."""

    data: Any

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


@pytest.mark.parametrize("form", ["columns", "list", "one by one"])
@pytest.mark.parametrize("name", ["forget", "retain", "holdout"])
def test_every_label_is_checked_before_anything_runs(
    name: str, form: str, mlp_problem: Problem, tmp_path: Path
) -> None:
    inputs, labels = tiny.vectors(per_class=10).tensors
    labels = labels.clone()
    labels[-1] = tiny.CLASSES
    forms = {"columns": TensorDataset(inputs, labels), "list": list(zip(inputs, labels.tolist(), strict=True))}
    data = forms[form] if form in forms else OneByOne(forms["list"])
    method = GradientAscent(1e30, epochs=50)  # reads the forget set alone, and would diverge if it ran
    with pytest.raises(LabelError, match="a label is 4, outside the 4 classes of the task"):
        unlearn(
            dataclasses.replace(mlp_problem, classes=(), **{name: data}),
            method,
            execution=tiny.QUIET,
            checkpoint_dir=tmp_path / "checkpoints",
        )
    assert not (tmp_path / "checkpoints").exists()


def test_classes_are_compared_where_examples_must_be_read_one_by_one(mlp_problem: Problem) -> None:
    other = OneByOne(tiny.as_tuples(tiny.vectors(per_class=3)))
    for name, words in (("forget", "9 of 12 forget examples"), ("retain", "3 retained examples")):
        problem = dataclasses.replace(mlp_problem, **{name: other})
        with pytest.raises(ForgetSetError, match=words):
            unlearn(problem, METHOD, execution=tiny.QUIET)


def test_execution_is_recorded(mlp_problem: Problem) -> None:
    execution = dataclasses.replace(tiny.QUIET, micro_batch_size=7)
    recorded = unlearn(mlp_problem, METHOD, execution=execution).record.execution
    assert recorded == dataclasses.asdict(execution) | {"device": "cpu", "processes": 1, "threads": 1}
