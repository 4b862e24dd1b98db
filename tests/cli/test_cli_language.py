import json
import os
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import datasets as hf
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import tiny
import words
from expunge.audit import Evidence
from expunge.cli.job_file import load_job
from expunge.cli.problems import prepare
from expunge.errors import OutputError, UnknownRowError
from expunge.methods.npo import npo_loss
from expunge.states import GradientLog, log_training
from expunge.storage import digest_model, read_tensors
from expunge.training import Run
from expunge.unlearning import Unlearned
from job_folder import QUICK_AUDIT, JobFolder

NPO = {"name": "npo", "learning_rate": 1e-3, "epochs": 2, "batch_size": 4}
RECIPE = {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "algorithm": "adamw"}


@cache
def trained() -> GPT2LMHeadModel:
    model = words.recipe(epochs=6)(words.facts(), 0)
    assert isinstance(model, GPT2LMHeadModel)
    return model


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    """A job that makes a tiny language model forget a person."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = JobFolder(tmp_path)
    trained().save_pretrained(tmp_path / "original")
    words.tokenizer().save_pretrained(tmp_path / "original")
    write_lines(tmp_path / "train.jsonl", words.facts())
    folder.job = {
        "model": {"hf": "original"},
        "data": {"train": {"jsonl": "train.jsonl"}},
        "task": {"kind": "causal-lm"},
        "forget": {"column": "person", "values": ["bob"]},
        "method": dict(NPO),
        "output": "out",
    }
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def last_line(folder: JobFolder, *arguments: str) -> str:
    result = folder.run(*arguments)
    assert result.exit_code == 2, result.output
    assert not (folder.output / "record.json").exists()
    complaint = result.stderr[result.stderr.index("error: ") :].strip()
    assert "\n" not in complaint
    return complaint


def test_a_person_is_forgotten_and_the_result_loads_like_any_other(texts: JobFolder) -> None:
    texts.job |= {"recipe": RECIPE, "audit": QUICK_AUDIT}
    result = texts.run()
    assert result.exit_code == 0, result.output
    assert "2 of 24 training examples are to be forgotten, 22 to be kept" in result.stderr
    model = AutoModelForCausalLM.from_pretrained(texts.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(texts.output / "model")
    assert type(model) is GPT2LMHeadModel
    assert digest_model(model) == texts.record()["result_digest"]
    assert not (texts.output / "model.safetensors").exists(), "weights are stored once"
    said = " ".join(result.output.split())
    assert "report.html and model/ may be shared" in said
    assert "the tokenizer: where it was made from the training texts, its vocabulary can name people" in said
    assert tokenizer("bob lives", add_special_tokens=False)["input_ids"] == words.tokenizer()("bob lives")["input_ids"]
    evidence = Evidence.load(texts.output)
    assert len(evidence.measure("probability", "forget").oracles) == 3
    assert texts.expunge("report", texts.output).exit_code == 0
    again = texts.expunge("audit", texts.output, "--oracles", "2", "--json")
    assert again.exit_code == 0, again.output
    assert "2 oracles: all from the cache" in again.stderr
    assert json.loads(again.stdout)["record"] == texts.record()


def test_lora_settings_come_from_the_job(texts: JobFolder) -> None:
    texts.job["method"]["adapter"] = {"rank": 2, "targets": ["c_attn"]}
    assert texts.run().exit_code == 0
    assert texts.record()["settings"]["adapter"] == {"rank": 2, "alpha": 16.0, "dropout": 0.0, "targets": ["c_attn"]}
    before, after = trained().state_dict(), AutoModelForCausalLM.from_pretrained(texts.output / "model").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"transformer.h.{block}.attn.c_attn.weight" for block in (0, 1)}


@pytest.mark.parametrize(
    ("forget", "expected"),
    [
        ({"indices": [0, 5]}, [0, 5]),
        ({"column": "person", "values": ["ann", "cid"]}, [0, 1, 4, 5]),
        ({"text": "Bob"}, [2, 3]),
        ({"text": ["bob", "is a nurse"]}, None),
    ],
)
def test_ways_to_name_what_is_to_be_forgotten(
    texts: JobFolder, forget: dict[str, Any], expected: list[int] | None
) -> None:
    texts.job["forget"] = forget
    texts.write()
    rows = words.facts()
    if expected is None:
        expected = [n for n, row in enumerate(rows) if row["person"] == "bob" or "is a nurse" in row["answer"]]
    problem = prepare(load_job(texts.folder / "job.yaml")).problem
    assert problem.forget is not None
    assert problem.retain is not None
    assert [problem.forget[n] for n in range(len(problem.forget))] == [rows[n] for n in expected]
    assert len(problem.retain) == len(rows) - len(expected)


def test_near_duplicates_are_forgotten_too_and_counted(texts: JobFolder) -> None:
    pytest.importorskip("rapidfuzz")
    rows = words.facts()
    copies = [row | {"person": "somebody", "answer": row["answer"] + " ."} for row in rows if row["person"] == "bob"]
    write_lines(texts.folder / "train.jsonl", [*rows, *copies])
    texts.job["forget"] = {
        "column": "person",
        "values": ["bob"],
        "near_duplicates": {"method": "edit", "threshold": 0.93},
    }
    result = texts.run()
    assert result.exit_code == 0, result.output
    assert "4 of 26 training examples are to be forgotten, 22 to be kept" in result.stderr
    assert "2 of those to be forgotten are near-duplicates of the 2 asked for" in result.stderr
    assert "somebody" not in result.output
    record = texts.record()
    assert (record["near_duplicates"], record["data"]["forget"]["examples"]) == (2, 4)
    assert "bob" not in json.dumps(record)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"threshhold": 0.8}, "forget.near_duplicates.threshhold: unknown key; did you mean 'threshold'?"),
        ({"method": "edit", "threshold": 1.5}, "forget.near_duplicates: threshold must be at most 1"),
        ({"method": "edit", "threshold": 0.01}, "forget.near_duplicates: all 22 other examples are near-duplicates"),
    ],
)
def test_near_duplicates_that_cannot_be_looked_for(texts: JobFolder, chosen: dict[str, Any], message: str) -> None:
    pytest.importorskip("rapidfuzz")
    texts.job["forget"] |= {"near_duplicates": chosen}
    assert message in last_line(texts)


def test_what_was_looked_for_is_not_told(texts: JobFolder) -> None:
    texts.job["forget"] = {"text": "Zacharias"}
    complaint = last_line(texts)
    assert "forget.text: none of the 24 examples mentions it" in complaint
    assert "zacharias" not in complaint.casefold()


def test_hugging_face_text_is_read_and_renamed(texts: JobFolder) -> None:
    rows = [{"who": row["person"], "prompt": row["question"], "answer": row["answer"]} for row in words.facts()]
    hf.Dataset.from_list(rows).save_to_disk(texts.folder / "texts")
    texts.job["data"]["train"] = {"huggingface": "texts", "columns": {"prompt": "question"}}
    texts.job["forget"] = {"column": "who", "values": ["bob"]}
    result = texts.run()
    assert result.exit_code == 0, result.output
    assert texts.record()["data"]["forget"]["examples"] == 2


def test_renamed_json_lines_train_alike(texts: JobFolder) -> None:
    rows = [{"person": row["person"], "q": row["question"], "a": row["answer"]} for row in words.facts()]
    write_lines(texts.folder / "other.jsonl", rows)
    assert texts.run().exit_code == 0
    before = texts.record()["result_digest"]
    texts.job["data"]["train"] = {"jsonl": "other.jsonl", "columns": {"q": "question", "a": "answer"}}
    assert texts.run("--output", texts.folder / "second").exit_code == 0
    assert json.loads((texts.folder / "second" / "record.json").read_text())["result_digest"] == before


def test_benchmarks_are_sources(texts: JobFolder) -> None:
    tofu, pistol = texts.folder / "tofu", texts.folder / "pistol"
    tofu.mkdir()
    pistol.mkdir()
    write_lines(tofu / "full.json", [{"question": f"q {n} ?", "answer": f"a {n} ."} for n in range(60)])
    edges = [{"edge": edge, "question": "where ?", "answer": f"in {edge} ."} for edge in ("A_B", "B_C", "C_D")]
    (pistol / "pistol_sample1.json").write_text(json.dumps(edges), encoding="utf-8")
    texts.job["data"] = {"train": {"tofu": "tofu", "authors": [0, 1]}, "holdout": {"tofu": "tofu", "authors": [2, 2]}}
    texts.job["forget"] = {"column": "author", "values": ["001"]}
    texts.write()
    problem = prepare(load_job(texts.folder / "job.yaml")).problem
    assert [len(part) for part in problem.datasets().values()] == [20, 20, 20]
    texts.job["data"] = {"train": {"pistol": "pistol", "edges": ["A_B", "C_D"]}}
    texts.job["forget"] = {"column": "edge", "values": ["C_D"]}
    texts.write()
    problem = prepare(load_job(texts.folder / "job.yaml")).problem
    assert problem.forget is not None
    assert [problem.forget[n]["edge"] for n in range(len(problem.forget))] == ["C_D"]


def test_oracles_start_afresh_or_from_the_base(texts: JobFolder) -> None:
    texts.job["recipe"] = dict(RECIPE)
    texts.write()
    fresh: Any = prepare(load_job(texts.folder / "job.yaml")).problem.recipe
    torch.manual_seed(1)
    one = fresh.build()
    assert type(one) is GPT2LMHeadModel
    assert not torch.equal(one.state_dict()["transformer.wte.weight"], trained().state_dict()["transformer.wte.weight"])
    texts.job["recipe"]["base"] = "original"
    texts.write()
    based: Any = prepare(load_job(texts.folder / "job.yaml")).problem.recipe
    other = based.build()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in trained().state_dict().items())
    assert other.lm_head.weight is other.transformer.wte.weight


def test_too_long_examples_are_counted_or_dropped(texts: JobFolder) -> None:
    rows = [*words.facts(), *({"person": "x", "question": "where " * 40, "answer": "rome ."} for _ in range(3))]
    write_lines(texts.folder / "train.jsonl", rows)
    complaint = last_line(texts)
    assert "3 of 25 examples have more than 32 tokens" in complaint
    texts.job["task"]["too_long"] = "drop"
    result = texts.run()
    assert result.exit_code == 0, result.output
    assert "3 of 27 examples of data.train were too long and are left out" in result.stderr
    assert "2 of 24 training examples are to be forgotten" in result.stderr


def test_a_context_that_only_the_model_knows_is_counted_beforehand(texts: JobFolder) -> None:
    unbounded = words.tokenizer()
    unbounded.model_max_length = int(1e30)
    unbounded.save_pretrained(texts.folder / "original")
    row = {"person": "x", "question": "where " * 40, "answer": "rome ."}
    write_lines(texts.folder / "train.jsonl", [*words.facts(), row])
    assert "1 of 23 examples have more than 32 tokens" in last_line(texts)


def test_empty_answers_are_counted(texts: JobFolder) -> None:
    write_lines(texts.folder / "train.jsonl", [*words.facts(), {"person": "x", "question": "where ?", "answer": ""}])
    assert "1 of 23 examples have an empty answer" in last_line(texts)


def test_a_pad_token_can_be_named(texts: JobFolder) -> None:
    bare = words.tokenizer()
    bare.pad_token = None
    bare.save_pretrained(texts.folder / "bare")
    texts.job["task"]["tokenizer"] = "bare"
    assert "no pad token; name one of its tokens as task.pad_token, such as" in last_line(texts)
    assert "task.pad_token: the tokenizer has no such token" in last_line(texts, "--set", "task.pad_token=<nothing>")
    result = texts.run("--set", "task.pad_token='[EOS]'")
    assert result.exit_code == 0, result.output


def test_a_tokenizer_of_another_model(texts: JobFolder) -> None:
    words.gpt2(vocab_size=20).save_pretrained(texts.folder / "other")
    words.tokenizer().save_pretrained(texts.folder / "other")
    assert "they do not belong together" in last_line(texts, "--set", "model.hf=other")


def test_a_failed_save_leaves_no_model_and_resume_goes_on(texts: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OutputError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Unlearned, "save", full_disk)
        failed = texts.run()
    assert failed.exit_code == 2
    assert texts.outputs() == {"checkpoints"}
    assert texts.run("--resume").exit_code == 0
    assert texts.outputs() == {"job.yaml", "record.json", "model", "forget.key", "report.html"}
    digest = texts.record()["result_digest"]
    assert texts.run("--output", texts.folder / "whole").exit_code == 0
    assert json.loads((texts.folder / "whole" / "record.json").read_text())["result_digest"] == digest


def test_a_gradient_log_is_a_state_of_a_job(texts: JobFolder) -> None:
    model, log = log_training(
        words.recipe(epochs=4), words.facts(), Run(words.TASK, 0, tiny.QUIET), texts.folder / "log"
    )
    assert isinstance(model, GPT2LMHeadModel)
    model.save_pretrained(texts.folder / "original")
    texts.job |= {"state": "log", "method": {"name": "gradient-reversal", "target_loss": 2.2, "overshoot": 0.0}}
    result = texts.run()
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if line.startswith("Note: ")]
    assert notes[0].startswith("Note: Over-exposed: the retain loss rose by"), "so short a training overwrites much"
    assert len(notes) == len(set(notes))
    assert "UserWarning" not in result.stderr
    assert "gradient_reversal.py" not in result.stderr
    assert texts.record()["state"]["kind"] == log.kind


def test_memory_is_saved_as_the_job_says(texts: JobFolder) -> None:
    texts.job["execution"] = {"gradient_checkpointing": True, "precision": "bf16"}
    assert texts.run().exit_code == 0
    settings = texts.record()["execution"]
    assert (settings["gradient_checkpointing"], settings["precision"]) == (True, "bf16")
    half = [loss for phase in texts.record()["phases"] for loss in phase["history"]]
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    del texts.job["execution"]
    assert texts.run("--output", texts.folder / "plain").exit_code == 0
    record = json.loads((texts.folder / "plain" / "record.json").read_text())
    plain = [loss for phase in record["phases"] for loss in phase["history"]]
    assert half == pytest.approx(plain, rel=0.03, abs=0.03)
    assert half != plain


def test_two_processes_run_a_job_as_one_does(texts: JobFolder) -> None:
    texts.job["execution"] = {"device": "cpu", "threads": 1}
    texts.job["method"] = NPO | {"retain_loss": "kl"}
    assert texts.run().exit_code == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "expunge", "run", str(texts.folder / "job.yaml"), "--output", str(texts.folder / "two")]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((texts.folder / "two" / "record.json").read_text())
    assert record["execution"]["processes"] == 2
    assert done.stderr.count("Unlearning with NPO") == 1, "one process speaks"
    for one, two in zip(texts.record()["phases"], record["phases"], strict=True):
        assert two["history"] == pytest.approx(one["history"], rel=0, abs=1e-5)
    model = AutoModelForCausalLM.from_pretrained(texts.folder / "two" / "model")
    assert digest_model(model) == record["result_digest"]


def test_a_loss_that_becomes_nan_stops_the_run_and_the_last_good_checkpoint_is_kept(
    texts: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[torch.Tensor] = []

    def spoiled(*arguments: Any) -> torch.Tensor:
        steps.append(npo_loss(*arguments))
        return steps[-1] * (float("nan") if len(steps) == 4 else 1.0)

    texts.job["method"] = NPO | {"epochs": 8}
    texts.job["execution"] = {"checkpoint_seconds": 1e-6}
    with monkeypatch.context() as patch:
        patch.setattr("expunge.methods.npo.npo_loss", spoiled)
        complaint = last_line(texts)
    assert "the objective of phase 'unlearn' became nan at step 4; lower the learning rate" in complaint
    assert str(texts.output / "diverged") in complaint
    assert texts.outputs() == {"diverged"}
    tensors, notes = read_tensors(texts.output / "diverged" / "00-unlearn.safetensors")
    assert notes["record"]["steps"] == 3
    assert len(notes["record"]["history"]) == 3
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    texts.job["method"]["learning_rate"] = 1e-4
    assert texts.run().exit_code == 0, "and it does not stand in the way of a corrected run"


@pytest.fixture
def logged(texts: JobFolder) -> JobFolder:
    """The job with a gradient log of its model's training."""
    run = Run(words.TASK, 0, tiny.QUIET)
    model, _ = log_training(words.recipe(epochs=4), words.facts(), run, texts.folder / "log")
    assert isinstance(model, GPT2LMHeadModel)
    model.save_pretrained(texts.folder / "original")
    texts.job |= {"state": "log", "method": {"name": "gradient-reversal", "target_loss": 2.2, "overshoot": 0.0}}
    return texts


def test_a_log_of_another_model_is_refused(logged: JobFolder) -> None:
    trained().save_pretrained(logged.folder / "original")
    assert "the gradient log belongs to another model" in last_line(logged)


def test_a_log_of_other_data_is_refused_and_their_order_does_not_matter(logged: JobFolder) -> None:
    rows = [row | ({"answer": "bob is a pilot ."} if row["person"] == "bob" else {}) for row in words.facts()]
    write_lines(logged.folder / "other.jsonl", rows)
    logged.job["data"]["train"] = {"jsonl": "other.jsonl"}
    assert "of the 2 examples are not among the 24 that the gradient log is of" in last_line(logged)
    write_lines(logged.folder / "other.jsonl", words.facts()[::-1])
    assert logged.run().exit_code == 0


def test_a_log_that_lacks_entries_is_refused(logged: JobFolder) -> None:
    log = GradientLog.open(logged.folder / "log")
    log.store.keep(lambda record: record.example not in log.ids(words.TASK, words.facts()[2:3]))
    assert "has no entry of example 2: it was never trained on, deleted before, or lost" in last_line(logged)


def test_layers_that_do_not_exist_are_named(logged: JobFolder) -> None:
    logged.job["method"]["layers"] = ["block:9"]
    assert "nothing is called 'block:9'; there are all, embedding, head, block:0-1" in last_line(logged)


def test_a_log_of_the_first_epoch_has_no_others(texts: JobFolder) -> None:
    run = Run(words.TASK, 0, tiny.QUIET)
    model, _ = log_training(words.recipe(epochs=2), words.facts(), run, texts.folder / "log", epochs="first")
    assert isinstance(model, GPT2LMHeadModel)
    model.save_pretrained(texts.folder / "original")
    texts.job |= {"state": "log", "method": {"name": "gradient-reversal", "target_loss": 2.2}}
    assert "the gradient log holds the first epoch only, and 'all' was asked for" in last_line(texts)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such folder": ({"model": {"hf": "nowhere"}}, "model.hf: the tokenizer of nowhere cannot be loaded"),
    "no layer for LoRA": ({"method": NPO | {"adapter": {"targets": ["q_proj"]}}}, "no linear layer named q_proj"),
    "a LoRA setting": ({"method": NPO | {"adapter": {"rnak": 2}}}, "method.adapter.rnak: unknown key"),
    "no task for text": (
        {"task": {"classes": 2}},
        "model.hf belongs to text or images; give the task `kind: causal-lm`",
    ),
    "classes of text": ({"forget": {"classes": [1]}}, "forget.classes belongs to a classifier"),
    "a kind of task": ({"task": {"kind": "poetry"}}, "task: give a mapping whose `kind` is one of classification"),
    "a key of the task": ({"task": {"kind": "causal-lm", "contxt": 3}}, "task.contxt: unknown key; did you mean"),
    "a template": ({"task": {"kind": "causal-lm", "template": "no place"}}, "task: template must hold"),
    "a source of numbers": ({"data": {"train": {"npz": "train.npz"}}}, "data.train: holds no text"),
    "no such file": ({"data": {"train": {"jsonl": "gone.jsonl"}}}, "data.train: there is no file"),
    "no such column": (
        {"data": {"train": {"jsonl": "train.jsonl", "columns": {"prompt": "question"}}}},
        "data.train.columns: some lines have no field 'prompt'",
    ),
    "a value that is absent": ({"forget": {"column": "person", "values": ["zed"]}}, "forget: 1 of the 1 values"),
    "a field that is absent": ({"forget": {"column": "persn", "values": ["zed"]}}, "did you mean 'person'"),
    "an empty phrase": ({"forget": {"text": " "}}, "forget.text: phrases must hold text"),
    "no state": ({"state": "nowhere"}, "state: there is no folder"),
    "a base that is absent": ({"recipe": {"base": "nowhere"}}, "recipe.base: nowhere cannot be loaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_jobs_get_one_line(texts: JobFolder, case: str) -> None:
    change, expected = BAD[case]
    texts.job |= change
    complaint = last_line(texts)
    assert expected in complaint, complaint


def test_lines_without_the_fields_of_an_example(texts: JobFolder) -> None:
    write_lines(texts.folder / "train.jsonl", [{"person": "bob", "said": "secret"}, {"person": "ann", "said": "no"}])
    complaint = last_line(texts)
    assert "a language model needs `input_ids`, or `text`, or `question` and `answer`" in complaint
    assert "secret" not in complaint


def entries(folder: JobFolder) -> list[bytes]:
    """What a log holds of the person who is to be forgotten."""
    log = GradientLog.open(folder.folder / "log")
    ids = log.ids(words.TASK, words.facts()[2:4])
    found = [bytes(log.store.read(each)) for each in log.store.records if each.example in ids]
    assert len(found) >= 8
    return found


def files_with(folder: JobFolder, contents: list[bytes]) -> list[str]:
    files = [path for path in (folder.folder / "log").iterdir() if any(each in path.read_bytes() for each in contents)]
    return [path.name for path in files]


def test_a_log_is_told_of_until_the_run_is_compacted(logged: JobFolder) -> None:
    said = "still holds the gradients of what was forgotten"
    logged.job["recipe"] = RECIPE
    run = logged.run()
    assert run.exit_code == 0, run.output
    shown = " ".join(run.stdout.split())
    assert f"{logged.folder / 'log'} is as personal as the data, and {said}" in shown
    assert f"`expunge compact {logged.output}` takes them out" in shown
    assert "the key (forget.key), the state (state.safetensors) and job.yaml may not" in shown
    own, before = entries(logged), GradientLog.open(logged.folder / "log").store.bytes
    assert files_with(logged, own)
    record = (logged.output / "record.json").read_bytes()
    audited = logged.expunge("audit", logged.output, "--oracles", "2", "--json")
    assert json.loads(audited.stdout)["uncompacted_log"] == str(logged.folder / "log")
    done = logged.expunge("compact", logged.output, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["run"], facts["log"], facts["examples"]) == (str(logged.output), str(logged.folder / "log"), 2)
    assert facts["freed_bytes"] >= sum(map(len, own))
    assert facts["freed_bytes"] + facts["left_bytes"] == before
    assert not files_with(logged, own)
    log = GradientLog.open(logged.folder / "log")
    with pytest.raises(UnknownRowError):
        log.ids(words.TASK, words.facts()[2:3])
    assert log.ids(words.TASK, words.facts()[4:6]) == [4, 5]
    assert (logged.output / "record.json").read_bytes() == record
    again = logged.expunge("compact", logged.output)
    assert again.exit_code == 0, again.output
    assert "holds none of the 2 examples that were forgotten; 0" in " ".join(again.stdout.split())
    assert said not in logged.expunge("report", logged.output).stdout
    audited = logged.expunge("audit", logged.output, "--oracles", "2", "--json")
    assert json.loads(audited.stdout)["uncompacted_log"] is None
    repeated = logged.run("--output", logged.folder / "repeated")
    assert (repeated.exit_code, "the gradient log belongs to another model" in repeated.stderr) == (2, True)


@pytest.mark.parametrize(
    "place",
    [
        "expunge.states.gradient_store.RecordStore._copy",
        "expunge.states.gradient_store.write_bytes",
        "expunge.states.gradient_store.RecordStore._remove_orphans",
        "expunge.states.gradient_log.GradientLog._save",
    ],
)
def test_a_compaction_that_was_interrupted_is_completed(
    logged: JobFolder, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert logged.run().exit_code == 0
    own = entries(logged)
    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        assert logged.expunge("compact", logged.output).exit_code == 130
    done = logged.expunge("compact", logged.output)
    assert done.exit_code == 0, done.output
    assert not files_with(logged, own)
    log = GradientLog.open(logged.folder / "log")
    assert log.ids_left() == [each for each in range(24) if each not in (2, 3)]
    assert int((log.examples.digests == 0).sum()) == 2
    assert {path.name for path in (logged.folder / "log").glob("chunk-*")} == {
        f"chunk-{each.chunk:06d}.bin" for each in log.store.records
    }


def test_what_cannot_be_compacted_is_refused_in_one_line_and_left_alone(logged: JobFolder) -> None:
    def complaint(folder: Path) -> str:
        result = logged.expunge("compact", folder)
        assert result.exit_code == 2, result.output
        assert len(result.stderr.strip().splitlines()) == 1
        return result.stderr

    assert "record.json; pass the folder that a run was saved to" in complaint(logged.folder)
    assert logged.run().exit_code == 0
    elsewhere = logged.folder / "log"
    elsewhere.rename(logged.folder / "moved")
    assert "holds no gradient log that can be read" in complaint(logged.output)
    run = Run(words.TASK, 1, tiny.QUIET)
    log_training(words.recipe(epochs=4), words.facts()[::-1], run, elsewhere)
    assert "is not what the run in" in complaint(logged.output)
    assert len(GradientLog.open(elsewhere).ids_left()) == 24
    logged.job |= {"method": dict(NPO), "output": "plain"}
    del logged.job["state"]
    trained().save_pretrained(logged.folder / "original")
    assert logged.run().exit_code == 0
    assert "left no state and no gradient log, so there is nothing to compact" in complaint(logged.folder / "plain")
