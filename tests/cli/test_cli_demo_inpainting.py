import json

import pytest

from expunge.audit import Evidence
from expunge.cli import demo_inpainting
from job_folder import JobFolder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_inpainting, "_EPOCHS", 1)
    monkeypatch.setattr(demo_inpainting, "_JUDGE_EPOCHS", 1)
    monkeypatch.setattr(demo_inpainting, "_METHOD", {"name": "latent-remap", "epochs": 1})
    relearning = {"steps": [0, 1], "forget_examples": 10, "retain_examples": 20}
    monkeypatch.setattr(demo_inpainting, "_AUDIT", demo_inpainting._AUDIT | {"relearning": relearning, "bits": []})


@pytest.mark.usefixtures("quick")
def test_a_short_demo_leaves_a_run_to_work_on(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "inpainting", "--output", jobs.output, "--oracles", "2", "--json")
    assert result.exit_code == 0, result.output
    story = json.loads(result.stdout)
    assert story["demonstration"] == "inpainting"
    assert [found["on"] for found in story["restorations"]] == [
        "forget",
        "retain",
        "holdout",
        "holdout, forgotten kind",
    ]
    assert jobs.outputs() == set(demo_inpainting._FILES)
    grid = Evidence.load(jobs.output).grid
    assert grid is not None
    assert list(grid.columns) == ["input", "original", "unlearned", "oracle", "truth"]
    page = (jobs.output / "report.html").read_bytes()
    assert b"none of which was trained on" in page
    assert jobs.expunge("report", jobs.output).exit_code == 0
    assert (jobs.output / "report.html").read_bytes() == page
    demo_inpainting._clear(jobs.output)
    assert jobs.outputs() == {demo_inpainting.FACTS_FILE}


def test_the_demo_overwrites_nothing_of_the_users(jobs: JobFolder) -> None:
    jobs.output.mkdir()
    (jobs.output / "thesis.tex").write_text("precious", encoding="utf-8")
    result = jobs.expunge("demo", "inpainting", "--output", jobs.output)
    assert result.exit_code == 2
    assert "not of a demonstration" in result.stderr
    assert jobs.outputs() == {"thesis.tex"}


@pytest.mark.slow
def test_the_demo(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "inpainting", "--output", jobs.output)
    assert result.exit_code == 0, result.output
    measure = Evidence.load(jobs.output).measure("explained share", "forget")
    assert measure.original is not None
    assert measure.unlearned.value < measure.original.value - 0.02
    assert measure.original.value > max(measure.oracles)
