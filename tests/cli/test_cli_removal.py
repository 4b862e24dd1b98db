"""Jobs with methods of our own: a budget as a share of a retrain, a preset, and what is missing."""

import pytest

from expunge.methods._extrapolation import FACTORS
from job_folder import JobFolder

RECIPE = {"epochs": 10, "batch_size": 32}


def test_a_budget_is_counted_in_passes_of_the_recipe(jobs: JobFolder) -> None:
    jobs.job |= {"recipe": RECIPE, "method": {"name": "selective-reset", "budget": 0.4, "batch_size": 90}}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    record = jobs.record()
    assert record["method"] == "SelectiveReset"
    assert record["phases"][-1]["steps"] == 3  # 4 passes of 90, less a third and 120 / 90 of measuring
    assert 0 < record["phases"][-1]["measured"]["reset share"] < 0.3


def test_a_budget_without_a_recipe_is_refused(jobs: JobFolder) -> None:
    jobs.job["method"] = {"name": "selective-reset", "budget": 0.4}
    result = jobs.run()
    assert result.exit_code == 2
    assert "only a `Supervised` recipe tells" in result.stderr
    assert jobs.outputs() == set()


@pytest.mark.parametrize("settings", [{}, {"preset": "classifier"}, {"extrapolation": 1.5}])
def test_extrapolate_runs_from_a_job(jobs: JobFolder, settings: dict[str, object]) -> None:
    jobs.job["method"] = {"name": "extrapolate", "epochs": 1, **settings}
    result = jobs.run()
    assert result.exit_code == 0, result.output
    found = jobs.record()["phases"][0]["measured"]["extrapolation"]
    assert found in ([settings["extrapolation"]] if "extrapolation" in settings else FACTORS)
