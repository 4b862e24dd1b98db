import json
from pathlib import Path

import pytest
import torch

from expunge.audit import Evidence
from expunge.cli import demo
from expunge.cli.job_file import load_job
from job_folder import JobFolder

EXAMPLES = Path(__file__).parents[2] / "examples" / "jobs"


def test_the_digits_are_all_there_and_parted(jobs: JobFolder) -> None:
    train, holdout = demo.training_data(), demo.holdout_data()
    assert (len(train), len(holdout)) == (1400, 397)
    assert train.tensors[0].shape[1:] == (1, 8, 8)
    assert float(train.tensors[0].max()) == 1.0
    together = torch.cat([train.tensors[0], holdout.tensors[0]]).flatten(1)
    assert len(together.unique(dim=0)) == 1797


def test_a_short_demo_leaves_a_run_to_work_on(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    result = jobs.expunge("demo", "--output", jobs.output, "--oracles", "2")
    assert result.exit_code == 0, result.output
    assert jobs.outputs() == set(demo._FILES)
    assert "137 of 1,400 training examples" in result.stderr
    evidence = json.loads((jobs.output / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["settings"]["oracles"] == 2
    for text in ("accuracy, forget", "accuracy, retain", "accuracy, holdout", "relearning", "Verdict", "Report"):
        assert text in result.stdout
    assert jobs.expunge("report", jobs.output).exit_code == 0
    demo._clear(jobs.output)
    assert jobs.outputs() == set()


@pytest.mark.parametrize("name", ["thesis.tex", "job.yaml"])
def test_the_demo_overwrites_nothing_of_the_users(jobs: JobFolder, name: str) -> None:
    jobs.output.mkdir()
    (jobs.output / name).write_text("precious", encoding="utf-8")
    result = jobs.expunge("demo", "--output", jobs.output)
    assert result.exit_code == 2
    assert "not of a demonstration" in result.stderr
    assert jobs.outputs() == {name}


@pytest.mark.slow
def test_the_demo(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "--output", jobs.output)
    assert result.exit_code == 0, result.output
    evidence = Evidence.load(jobs.output)
    assert len(evidence.measure("accuracy", "forget").oracles) == 6
    original = evidence.measure("accuracy", "holdout").original
    assert original is not None
    assert original.value > 0.95
    assert evidence.measure("accuracy", "forget").unlearned.value < 0.9


@pytest.mark.slow
def test_the_example_job_runs(jobs: JobFolder) -> None:
    result = jobs.expunge("run", EXAMPLES / "digits.yaml", "--output", jobs.output, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["record"]["data"]["forget"]["examples"] == 140


def test_every_example_is_a_job() -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert len(files) >= 2
    assert all(load_job(file).base == EXAMPLES for file in files)
