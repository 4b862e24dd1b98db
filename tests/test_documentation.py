"""The code that people copy from the pages runs."""

import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from expunge import Problem, unlearn

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_the_ten_lines_of_the_readme(capsys: pytest.CaptureFixture[str]):
    exec(blocks("README.md")[0], {})

    assert "residual influence" in capsys.readouterr().out


def test_the_patient_of_the_readme(capsys: pytest.CaptureFixture[str]):
    _, code = blocks("README.md")

    exec(code, {})

    assert capsys.readouterr().out.startswith("exact the same fit")


def test_the_method_of_the_guide_to_extending(mlp_problem: Problem):
    names: dict[str, Any] = {"__name__": "extending"}
    exec(blocks("docs/extending.md")[0], names)

    result = unlearn(mlp_problem, names["RetainDescent"](steps=3), execution=tiny.QUIET)

    assert result.record.settings == {"learning_rate": 1e-3, "steps": 3}
    assert [phase.steps for phase in result.record.phases] == [3]


def test_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {"__name__": "pictures"}
    exec(blocks("docs/pictures.md")[0], names)

    assert names["parts"].indices.tolist() == list(range(8, 16))
    assert names["error"].inside
    assert names["grid"].svg


def test_the_ten_lines_of_the_guarantees():
    names: dict[str, Any] = {"__name__": "guarantees"}
    deletion, audit, retained, several = blocks("docs/guarantees.md")
    exec(deletion, names)

    assert names["result"].record.guarantee.value == "certified"
    assert len(names["next_state"].rows) == 399

    exec(audit, names)
    assert len(names["evidence"].measure("accuracy", "forget").oracles) == 3

    exec(retained, names)
    assert names["measured"].record.guarantee.value == "certified"
    exec(several, names)
    assert len(names["held"].rows) == 397
    assert len(names["budget"].releases) == 3
    assert 0 < names["budget"].left < names["budget"].limit


def test_the_page_on_estimators(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/estimators.md"):
        exec(code, names)

    said = capsys.readouterr().out
    assert said.startswith("exact the same fit (ridge: penalty 1.0, intercept True, classes True) to the rows that are")
    assert "were deleted before" in said
    assert "certified: (1, 3.1e-06), sigma" in said
    assert "'shard-00" in said


def test_the_page_on_text() -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/language.md"):
        exec(code, names)

    record = names["result"].record
    assert (record.method, record.data["forget"].examples) == ("NPO", 1)
    (phase,) = record.phases
    assert phase.history[-1] < phase.history[0]


def test_the_page_on_choosing_a_method() -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/recommending.md"):
        exec(code, names)

    choice = names["forgotten"].record.choice
    assert {trial.method for trial in choice.ranking} == {"FineTune", "NegGradPlus", "SelectiveReset"}
    assert len(choice.ranking) == 6
    assert choice.chosen == 0


@pytest.mark.slow
def test_the_page_on_images() -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/images.md"):
        exec(code, names)

    record = names["result"].record
    assert record.method == "LatentRemap"
    (phase,) = record.phases
    assert phase.history[-1] < phase.history[0]


def test_the_page_on_data_that_are_gone(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for code in blocks("docs/source-free.md"):
        exec(code, names)

    said = capsys.readouterr().out
    assert "can reconstruct the deleted row (cosine 1.000" in said
    assert names["found"].succeeded
    assert names["conditional"].tier.value == "conditional"
    assert names["change"].interval.low <= names["change"].value <= names["change"].interval.high
    assert (names["without_0"](names["inputs"]).argmax(1) == 0).double().mean() < 0.05


def test_the_page_on_removal(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/removal.md")
    names: dict[str, Any] = {}
    exec(code, names)

    assert tiny.accuracy(names["reset"].model, names["parts"].forget, names["task"]) < 0.1
    assert tiny.accuracy(names["reset"].model, names["parts"].retain, names["task"]) > 0.9
    assert names["method"].extrapolation >= 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["reset", "went"]


def test_the_page_on_the_methods_of_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/baselines.md")
    names: dict[str, Any] = {}
    exec(code, names)

    said = capsys.readouterr().out.splitlines()
    assert [line.rsplit(maxsplit=1)[0] for line in said[:1]] == ["kept the epoch"]
    assert names["amnesiac"].record.phases[0].steps > 10
    assert said[1] == f"took back {names['amnesiac'].record.phases[0].steps} steps"
