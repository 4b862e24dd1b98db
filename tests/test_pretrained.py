"""A language model's result is the folder that everybody loads, and no other copy of its weights."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
import words
from expunge import NPO, Unlearned, unlearn
from expunge.errors import OutputError, SavedModelError
from expunge.methods import LoraSettings
from expunge.storage import digest_model
from expunge.unlearning import RECORD_FILE

METHOD = NPO(1e-3, epochs=1, batch_size=4)
LOADING = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1])
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""


@pytest.fixture(scope="module")
def result() -> Unlearned:
    return unlearn(words.problem(), METHOD, execution=tiny.QUIET)


@pytest.fixture
def saved(result: Unlearned, tmp_path: Path) -> Path:
    result.save(tmp_path)
    return tmp_path


def test_weights_are_stored_once_beside_settings_and_tokenizer(saved: Path, result: Unlearned) -> None:
    assert {path.name for path in saved.iterdir()} == {"model", "record.json", "forget.key"}
    there = {path.name for path in (saved / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= there
    assert [path.relative_to(saved).as_posix() for path in saved.rglob("*.safetensors")] == ["model/model.safetensors"]
    assert Unlearned.load(saved, result.problem).record == result.record


def test_others_load_it_without_a_word(saved: Path, result: Unlearned) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved / "model")
    assert digest_model(model) == result.record.result_digest
    assert AutoTokenizer.from_pretrained(saved / "model")("bob")["input_ids"] == words.tokenizer()("bob")["input_ids"]
    command = [sys.executable, "-W", "error", "-c", LOADING, str(saved / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "GPT2LMHeadModel\n", done.stderr
    said = [line for line in done.stderr.splitlines() if line and "Loading weights" not in line]
    assert not said


def test_a_merged_adapter_is_a_plain_model(tmp_path: Path) -> None:
    problem = words.problem()
    result = unlearn(problem, dataclasses.replace(METHOD, adapter=LoraSettings(rank=2)), execution=tiny.QUIET)
    result.save(tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())
    assert digest_model(model) == result.record.result_digest
    assert digest_model(Unlearned.load(tmp_path, problem).model) == result.record.result_digest


def test_other_weights_than_the_recorded_are_refused(saved: Path, result: Unlearned) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved / "model")
    with torch.no_grad():
        model.transformer.ln_f.bias[0] += 1e-3
    model.save_pretrained(saved / "model")
    with pytest.raises(SavedModelError, match=r"model does not match record\.json: the weights were changed"):
        Unlearned.load(saved, result.problem)


@pytest.mark.parametrize("damage", ["truncated", "gone", "settings gone"])
def test_damage_is_named(damage: str, saved: Path, result: Unlearned) -> None:
    weights = saved / "model" / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (weights if damage == "gone" else saved / "model" / "config.json").unlink()
    with pytest.raises(SavedModelError, match="is damaged or holds no such model"):
        Unlearned.load(saved, result.problem)


def test_a_model_of_another_kind_is_refused(saved: Path, result: Unlearned) -> None:
    other = dataclasses.replace(result.problem, model=torch.nn.Linear(2, 2))
    with pytest.raises(SavedModelError, match="holds a Hugging Face model, and the problem's model is a Linear"):
        Unlearned.load(saved, other)


def test_saving_again_replaces_it_and_a_failure_leaves_what_was_there(
    saved: Path, result: Unlearned, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = unlearn(words.problem(), METHOD, seed=1, execution=tiny.QUIET)

    def full_disk(*_: object, **__: object) -> None:
        raise OutputError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("expunge.unlearning.write_files", full_disk)
        with pytest.raises(OutputError):
            other.save(saved)
    assert Unlearned.load(saved, result.problem).record == result.record
    other.save(saved)
    assert Unlearned.load(saved, result.problem).record == other.record
    assert {path.name for path in saved.iterdir()} == {"model", RECORD_FILE, "forget.key"}, "nothing is left over"
