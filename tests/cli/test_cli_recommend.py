"""`method: auto` and `expunge recommend`."""

import json
from pathlib import Path

import pytest

from expunge.recommending import CANDIDATES
from expunge.recommending import recommendation as chosen_from
from job_folder import QUICK_AUDIT, JobFolder


@pytest.fixture
def auto(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> JobFolder:
    few = {name: CANDIDATES[name] for name in ("FineTune", "NegGradPlus", "NPO")}
    monkeypatch.setattr(chosen_from, "CANDIDATES", few)
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "cache"))
    jobs.job |= {
        "recipe": {"epochs": 6, "batch_size": 32},
        "method": {"name": "auto", "oracles": 2, "rates": [1, 4], "budget": "50%"},
    }
    return jobs


def test_a_job_chooses_runs_audits_and_says_so(auto: JobFolder) -> None:
    auto.job["audit"] = QUICK_AUDIT
    result = auto.run()
    assert result.exit_code == 0, result.output
    record = auto.record()
    choice = record["choice"]
    assert record["method"] == choice["ranking"][choice["chosen"]]["method"]
    assert choice["budget"] == "50 % of a retrain"
    gaps = [trial["gap"] for trial in choice["ranking"]]
    assert gaps == sorted(gaps)
    assert len(gaps) == 4
    assert "CausalLM" in choice["left_out"]["NPO"]
    assert "Choosing a method" in result.stderr
    assert f"Chosen: {record['method']}" in result.stdout
    assert "Methods tried on a rehearsal" in (auto.output / "report.html").read_text(encoding="utf-8")

    again = auto.run("--resume")
    assert again.exit_code == 0, again.output
    assert "Choosing" not in again.stderr
    assert auto.record() == record
    shadowed = auto.expunge("audit", auto.output, "--oracles", "2", "--shadows", "2")
    assert shadowed.exit_code == 0, shadowed.output

    auto.job["method"] = {"name": "auto", "oracles": 2, "rates": [1, 4], "budget": "40%"}
    other = auto.run("--resume")
    assert other.exit_code == 2
    assert "another method, setting or seed" in other.stderr


def test_the_name_alone_is_a_method(auto: JobFolder) -> None:
    auto.job["method"] = "fine-tune"
    assert auto.run().exit_code == 0
    assert auto.record()["method"] == "FineTune"
    assert auto.record()["choice"] is None


def test_recommend_ranks_and_leaves_nothing_behind(auto: JobFolder) -> None:
    auto.write()
    before = {path.name for path in auto.folder.iterdir()}
    result = auto.expunge("recommend", auto.folder / "job.yaml", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert {trial["method"] for trial in printed["ranking"]} == {"FineTune", "NegGradPlus"}
    assert {path.name for path in auto.folder.iterdir()} == before | {"cache"}
    table = auto.expunge("recommend", auto.folder / "job.yaml")
    assert "Nearest: " in table.stdout
    assert "not tried: NPO" in table.stdout


def test_a_budget_on_the_command_line_is_checked_too(auto: JobFolder) -> None:
    auto.write()
    result = auto.expunge("recommend", auto.folder / "job.yaml", "--budget", "0 s")
    assert result.exit_code == 2
    assert "budget must be above 0" in result.stderr


def test_a_budget_on_the_command_line_changes_nothing_else_of_the_job(auto: JobFolder) -> None:
    auto.write()
    result = auto.expunge("recommend", auto.folder / "job.yaml", "--budget", "40%", "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["budget"] == "40 % of a retrain"
    assert printed["oracles"] == 2
    assert {trial["rate"] for trial in printed["ranking"]} == {1, 4}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": {"name": "auto", "budget": "soon"}}, "method: budget is 'soon'"),
        ({"method": {"name": "auto", "budgets": 1}}, "method.budgets: unknown key; did you mean 'budget'?"),
        ({"recipe": None}, "method: auto ranks methods by their distance from retraining; add a `recipe`"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_trained(
    auto: JobFolder, change: dict[str, object], said: str
) -> None:
    auto.job |= change
    result = auto.run()
    assert result.exit_code == 2
    assert said in result.stderr
    assert auto.outputs() == set()
