import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import expunge.cli.runs
import tiny
from expunge.audit import Evidence
from expunge.cli.job_file import load_job
from expunge.cli.problems import prepare
from expunge.errors import LabelError, OutputError
from expunge.training import Algorithm, Optimizer, Schedule, Supervised
from expunge.unlearning import Unlearned, unlearn
from job_folder import QUICK_AUDIT, JobFolder, trained_mlp

RESULT = {"job.yaml", "record.json", "model.safetensors", "forget.key", "report.html"}


def test_a_whole_job_leaves_a_complete_result(jobs: JobFolder) -> None:
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "audit": QUICK_AUDIT, "seed": 3}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert jobs.outputs() == RESULT | {"evidence.json"}
    evidence = Evidence.load(jobs.output)
    assert evidence.result_digest == jobs.record()["result_digest"]
    assert len(evidence.measure("accuracy", "forget").oracles) == 3
    assert evidence.seed == 3
    assert "accuracy, forget" in result.stdout
    assert evidence.sentence in " ".join(result.stdout.split())
    assert "30 of 120 training examples are to be forgotten, 90 to be kept" in result.stderr
    assert "<html" in (jobs.output / "report.html").read_text(encoding="utf-8")


def test_shadows_without_a_state_are_refused_before_anything_is_unlearned(jobs: JobFolder) -> None:
    kept = expunge.record(trained_mlp(), tiny.TASK, tiny.vectors(), kind="moments")
    expunge.save_state(kept, jobs.folder / "state")
    jobs.job |= {
        "recipe": {"epochs": 2, "batch_size": 32},
        "audit": QUICK_AUDIT | {"shadows": 2},
        "state": "state",
        "method": {"name": "newton-removal"},
    }
    result = jobs.run()
    assert result.exit_code == 2
    assert "NewtonRemoval deletes by what was recorded of the original" in result.stderr
    assert "Unlearning" not in result.stderr


def test_json_is_all_that_goes_to_standard_output(jobs: JobFolder) -> None:
    printed = json.loads(jobs.run("--json").stdout)
    assert printed["record"] == jobs.record()
    assert printed["evidence"] is None
    assert Path(printed["report"]).exists()


def test_set_changes_the_job_and_the_copy_says_so(jobs: JobFolder) -> None:
    jobs.job["method"] = {"name": "fine-tune", "stages": [{"learning_rate": 0.1, "epochs": 1}]}
    result = jobs.run("--set", "seed=7", "--set", "method.stages.0.learning_rate=2e-3", "--set", "execution.workers=0")
    assert result.exit_code == 0, result.output
    assert jobs.record()["seed"] == 7
    assert jobs.record()["settings"]["stages"] == [
        {"learning_rate": 0.002, "epochs": 1.0, "steps": None, "schedule": "constant"}
    ]
    copy = yaml.safe_load((jobs.output / "job.yaml").read_text(encoding="utf-8"))
    assert copy["seed"] == 7
    assert copy["base"] == str(jobs.folder)


def test_a_preset_is_the_base_of_the_settings(jobs: JobFolder) -> None:
    jobs.job["method"] |= {"preset": "paper"}
    assert jobs.run().exit_code == 0
    assert jobs.record()["settings"]["impair_learning_rate"] == 0.02
    assert jobs.record()["settings"]["noise_images"] == 4


def test_a_recipe_takes_every_setting_of_the_optimiser(jobs: JobFolder) -> None:
    asked = Optimizer(
        0.05,
        Algorithm.SGD,
        0.9,
        nesterov=True,
        weight_decay=1e-4,
        schedule=Schedule.COSINE,
        clip_norm=0.5,
        clip_value=2,
    )
    assert all(value != field.default for field, value in zip(fields(asked), astuple(asked), strict=True))
    jobs.job["recipe"] = {"epochs": 1} | asdict(asked) | {"algorithm": "sgd", "schedule": "cosine"}
    jobs.write()
    prepared = prepare(load_job(jobs.folder / "job.yaml"))
    assert isinstance(prepared.problem.recipe, Supervised)
    assert prepared.problem.recipe.optimizer == asked
    assert not [note for note in prepared.notes if "schedule" in note]


def test_a_schedule_that_the_recipe_does_not_name_is_told(jobs: JobFolder) -> None:
    jobs.job["recipe"] = {"epochs": 1}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert "retraining takes the schedule one-cycle, because the recipe names none" in result.stderr


def test_output_on_the_command_line_wins(jobs: JobFolder) -> None:
    assert jobs.run("--output", jobs.folder / "elsewhere").exit_code == 0
    assert (jobs.folder / "elsewhere" / "record.json").exists()
    assert not jobs.output.exists()


def test_what_tells_who_was_forgotten_is_private(jobs: JobFolder) -> None:
    assert jobs.run().exit_code == 0
    for name in ("job.yaml", "forget.key"):
        assert stat.S_IMODE((jobs.output / name).stat().st_mode) == 0o600


def test_a_finished_folder_is_refused_and_resume_completes_it(jobs: JobFolder) -> None:
    assert jobs.run().exit_code == 0
    before = (jobs.output / "model.safetensors").read_bytes()
    refused = jobs.run()
    assert refused.exit_code == 2
    assert "already holds a finished run" in refused.stderr
    assert "--output" in refused.stderr
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "audit": QUICK_AUDIT}
    completed = jobs.run("--resume")
    assert completed.exit_code == 0, completed.output
    assert (jobs.output / "evidence.json").exists()
    assert (jobs.output / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("change", ["seed=9", "method.noise_steps=3"])
def test_resume_refuses_to_complete_another_run(jobs: JobFolder, change: str) -> None:
    assert jobs.run().exit_code == 0
    result = jobs.run("--resume", "--set", change)
    assert result.exit_code == 2
    assert "another method, setting or seed" in result.stderr


def test_a_failed_save_leaves_no_result_and_resume_goes_on(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OutputError("cannot write: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Unlearned, "save", full_disk)
        failed = jobs.run()
    assert failed.exit_code == 2
    assert failed.stderr.splitlines()[-1] == "error: cannot write: the disk is full"
    assert jobs.outputs() == {"checkpoints"}
    assert jobs.run("--resume").exit_code == 0
    assert jobs.outputs() == RESULT


def test_a_failed_audit_keeps_the_model_and_resume_audits_it(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "audit": QUICK_AUDIT}
    with monkeypatch.context() as patch:
        patch.setattr(expunge.cli.runs, "audit", _interrupted)
        stopped = jobs.run()
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    assert jobs.outputs() == RESULT - {"report.html"}
    assert jobs.run("--resume").exit_code == 0
    assert jobs.outputs() == RESULT | {"evidence.json"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("audit.oracles=4", "(oracles)"),
        ("audit.relearning.retain_examples=10", "(relearning)"),
        ("recipe.epochs=1", "(recipe)"),
    ],
)
def test_resume_audits_again_where_the_evidence_is_not_what_the_job_asks_for(
    jobs: JobFolder, change: str, named: str
) -> None:
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "audit": QUICK_AUDIT}
    assert jobs.run().exit_code == 0
    before = Evidence.load(jobs.output)
    again = jobs.run("--resume", "--set", change)
    assert again.exit_code == 0, again.output
    assert f"was gathered with other settings {named}" in again.stderr
    assert Evidence.load(jobs.output) != before
    # and what is there now is what was asked for
    kept = jobs.run("--resume", "--set", change)
    assert "The evidence is already in" in kept.stderr
    assert "Auditing" not in kept.stderr
    assert yaml.safe_load((jobs.output / "job.yaml").read_text(encoding="utf-8"))["audit"] is not None


def test_resume_goes_back_to_the_job_after_an_audit_with_another_seed(finished: JobFolder) -> None:
    assert finished.expunge("audit", finished.output, "--oracles", "2", "--seed", "5").exit_code == 0
    kept = finished.run("--resume")
    assert "gathered with other settings" not in kept.stderr  # the job asks for none
    assert Evidence.load(finished.output).seed == 5
    finished.job["audit"] = {"oracles": 2}
    again = finished.run("--resume")
    assert "other settings (seed)" in again.stderr
    assert Evidence.load(finished.output).seed == 0


def test_resume_refuses_a_job_without_data_that_the_run_had(jobs: JobFolder) -> None:
    assert jobs.run().exit_code == 0
    del jobs.job["data"]["holdout"]
    result = jobs.run("--resume")
    assert result.exit_code == 2
    assert "the job has no holdout set" in result.stderr


def test_a_run_that_failed_for_good_makes_room_for_the_corrected_one(
    jobs: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(expunge.cli.runs, "unlearn", _fails_late(LabelError("labels are out of range")))
        failed = jobs.run()
    assert failed.exit_code == 2, failed.output
    assert jobs.outputs() == set()
    assert jobs.run("--set", "method.noise_steps=9").exit_code == 0


def test_checkpoints_of_an_interrupted_run_outlive_a_failure_on_resume(
    jobs: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, status in ((KeyboardInterrupt(), 130), (LabelError("labels are out of range"), 2)):
        with monkeypatch.context() as patch:
            patch.setattr(expunge.cli.runs, "unlearn", _fails_late(error))
            assert jobs.run("--resume").exit_code == status
        assert jobs.outputs() == {"checkpoints"}
    assert jobs.run("--resume").exit_code == 0


def test_a_job_may_keep_the_key_elsewhere(jobs: JobFolder) -> None:
    jobs.job |= {"key": "keys/run.key", "recipe": {"epochs": 2, "batch_size": 32}}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    assert jobs.outputs() == RESULT - {"forget.key"}
    key = jobs.folder / "keys" / "run.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert jobs.expunge("audit", jobs.output, "--oracles", "2").exit_code == 0
    refused = jobs.run("--output", jobs.folder / "another")
    assert refused.exit_code == 2
    assert "key: " in refused.stderr
    assert "name a new file" in refused.stderr
    assert not (jobs.folder / "another").exists()
    key.unlink()
    lost = jobs.expunge("audit", jobs.output)
    assert lost.exit_code == 2
    assert "run.key cannot be read" in lost.stderr


def test_a_run_killed_while_it_saved_may_have_left_its_key(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Unlearned, _: Path, *, key_path: Path) -> None:
        key_path.parent.mkdir(exist_ok=True)
        key_path.write_bytes(self.key)
        raise KeyboardInterrupt

    jobs.job["key"] = "keys/run.key"
    with monkeypatch.context() as patch:
        patch.setattr(Unlearned, "save", killed)
        assert jobs.run().exit_code == 130
    assert jobs.run("--resume").exit_code == 0


def test_the_summary_says_what_may_be_shared(jobs: JobFolder) -> None:
    jobs.job["recipe"] = {"epochs": 2, "batch_size": 32}
    shown = " ".join(jobs.run().stdout.split())
    assert shown.count("Of the folder, record.json, report.html and model.safetensors may be shared") == 1
    assert "the key (forget.key) and job.yaml may not" in shown
    audited = " ".join(jobs.expunge("audit", jobs.output, "--oracles", "2").stdout.split())
    assert "record.json, evidence.json, report.html and model.safetensors may be shared" in audited
    jobs.job["key"] = "keys/run.key"
    elsewhere = " ".join(jobs.run("--output", jobs.folder / "another").stdout.split())
    assert "model.safetensors may be shared; job.yaml may not" in elsewhere
    for name in re.findall(r"[\w.]+\.(?:json|html|safetensors|yaml|key)", shown + elsewhere):
        assert (jobs.output / name).exists()


def test_a_run_that_diverged_leaves_nothing(jobs: JobFolder) -> None:
    jobs.job["method"] = {"name": "gradient-ascent", "learning_rate": 1e30, "epochs": 20}
    result = jobs.run()
    assert result.exit_code == 2
    assert "lower the learning rate" in result.stderr
    assert jobs.outputs() == set()


def test_an_unwritable_output_is_one_line(jobs: JobFolder) -> None:
    (jobs.folder / "file").write_text("in the way", encoding="utf-8")
    result = jobs.run("--output", jobs.folder / "file" / "below")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: cannot write")


def test_a_killed_process_goes_on_to_the_same_bits(jobs: JobFolder) -> None:
    jobs.job["method"] = {"name": "gradient-ascent", "learning_rate": 1e-5, "epochs": 150, "batch_size": 8}
    jobs.job["execution"] = {"checkpoint_seconds": 0.05}
    jobs.write()
    command = [sys.executable, "-m", "expunge", "run", str(jobs.folder / "job.yaml")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    with subprocess.Popen(command, **quiet) as process:
        deadline = time.monotonic() + 60
        while not list(jobs.output.glob("checkpoints/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert list(jobs.output.glob("checkpoints/*.safetensors"))
    assert not (jobs.output / "record.json").exists()
    resumed = jobs.run("--resume")
    assert resumed.exit_code == 0, resumed.output
    assert jobs.run("--output", jobs.folder / "whole").exit_code == 0
    whole = json.loads((jobs.folder / "whole" / "record.json").read_text(encoding="utf-8"))
    assert jobs.record()["result_digest"] == whole["result_digest"]
    assert jobs.outputs() == RESULT


@pytest.mark.slow
def test_several_processes_write_and_print_once(jobs: JobFolder) -> None:
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "audit": QUICK_AUDIT}
    jobs.write()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "expunge"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "run", str(jobs.folder / "job.yaml"), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["record"]["execution"]["processes"] == 2
    assert done.stderr.count("Reading the data and the model") == 1
    assert jobs.outputs() == RESULT | {"evidence.json"}


def test_audit_and_report_work_on_a_saved_run(finished: JobFolder) -> None:
    audited = finished.expunge("audit", finished.output, "--oracles", "2", "--seed", "5", "--json")
    assert audited.exit_code == 0, audited.output
    evidence = Evidence.load(finished.output)
    assert json.loads(audited.stdout)["evidence"] == evidence.model_dump(mode="json")
    assert (evidence.seed, len(evidence.measure("accuracy", "forget").oracles)) == (5, 2)
    page = (finished.output / "report.html").read_bytes()
    (finished.output / "report.html").unlink()
    written = finished.expunge("report", finished.output, "--json")
    assert json.loads(written.stdout) == {"report": str(finished.output / "report.html")}
    assert (finished.output / "report.html").read_bytes() == page


def test_on_a_phone_each_figure_of_the_report_names_its_column(finished: JobFolder) -> None:
    assert finished.expunge("audit", finished.output, "--oracles", "2").exit_code == 0
    page = (finished.output / "report.html").read_text(encoding="utf-8")
    assert re.search(r"@media screen and \(max-width: 37.5rem\) \{.*content: attr\(data-column\)", page, re.DOTALL)
    table = page[page.index(">Unlearned lies</th>") :].split("</table>")[0]
    rows = [re.findall(r'<td data-column="([^"]+)">', row) for row in table.split("<tr>")[1:]]
    assert len(rows) == len(Evidence.load(finished.output).measures)
    expected = ["On", "Unlearned", "Original", "Mean oracle", "Oracle band", "Unlearned lies"]
    assert all(row == expected for row in rows)


def test_report_does_without_evidence(finished: JobFolder) -> None:
    (finished.output / "report.html").unlink()
    assert finished.expunge("report", finished.output).exit_code == 0
    assert (finished.output / "report.html").exists()


def test_an_audit_of_changed_data_is_refused(finished: JobFolder) -> None:
    finished.save_npz("train.npz", tiny.vectors(spread=0.8))
    result = finished.expunge("audit", finished.output)
    assert result.exit_code == 2
    assert "the forget and the retain set are not what" in result.stderr
    assert not (finished.output / "evidence.json").exists()


@pytest.mark.parametrize("command", ["audit", "report"])
def test_a_folder_without_a_run_is_an_error(jobs: JobFolder, command: str) -> None:
    result = jobs.expunge(command, jobs.folder)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no")


def test_an_unexpected_failure_is_not_dressed_up(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(expunge.cli.runs, "unlearn", broken)
    jobs.write()
    result = jobs.expunge("--traceback", "run", jobs.folder / "job.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
    assert jobs.outputs() == set()


def test_version(jobs: JobFolder) -> None:
    assert jobs.expunge("--version").stdout == f"expunge {version('expunge')}\n"


def _fails_late(error: BaseException) -> Callable[..., Unlearned]:
    """Unlearning that fails when all its phases have left checkpoints."""

    def fails(*arguments: Any, **options: Any) -> Unlearned:
        unlearn(*arguments, **options)
        raise error

    return fails


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_audit_tells_single_examples_and_subgroups(jobs: JobFolder) -> None:
    inputs, labels = (part.numpy() for part in tiny.vectors(40, seed=1).tensors)
    sites = np.asarray(["north", "south"])[np.arange(len(labels)) % 2]
    np.savez(jobs.folder / "holdout.npz", x=inputs, y=labels, site=sites)
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "method": {"name": "random-label", "epochs": 1}}
    jobs.job["audit"] = QUICK_AUDIT | {"oracles": 5, "shadows": 2, "subgroups": ["site"]}

    outcome = jobs.run("--json")

    assert outcome.exit_code == 0, outcome.output
    evidence = json.loads(outcome.stdout)["evidence"]
    assert {group["on"] for group in evidence["groups"]} >= {"site: north", "site: south"}
    assert evidence["epsilons"]["unlearned_models"] == 2
    assert "2 shadows before and after they are unlearned" in outcome.stderr
    again = jobs.expunge("audit", jobs.output, "--shadows", "0", "--oracles", "3", "--json")
    assert json.loads(again.stdout)["evidence"]["epsilons"] is None


def test_subgroups_need_a_holdout(jobs: JobFolder) -> None:
    jobs.job |= {"audit": QUICK_AUDIT | {"subgroups": ["site"]}, "recipe": {"epochs": 2}}
    del jobs.job["data"]["holdout"]

    outcome = jobs.run()

    assert outcome.exit_code == 2
    assert "audit.subgroups: name columns of the holdout, and there is none" in outcome.output
