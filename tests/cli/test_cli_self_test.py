"""The audit's own audit, in small."""

import json

import pytest

from job_folder import JobFolder


@pytest.mark.slow
def test_the_self_test_finds_shams_and_passes_truths(jobs: JobFolder) -> None:
    result = jobs.expunge("audit", "--self-test", "--seeds", "2", "--json")

    assert result.exit_code == 0, result.output
    outcomes = {each["model"]: each for each in json.loads(result.stdout)}
    assert {name for name, each in outcomes.items() if each["retrained"]} == {
        "retrained (class)",
        "retrained (outliers)",
    }
    for name in ("untouched original", "memorised outliers left in", "collapse by gradient ascent"):
        assert outcomes[name]["found"] == 2, outcomes[name]
    assert all(sum(each["verdicts"].values()) == 2 for each in outcomes.values())


def test_an_audit_of_nothing_says_what_is_missing(jobs: JobFolder) -> None:
    result = jobs.expunge("audit")

    assert result.exit_code == 2
    assert "RUN: is missing" in result.stderr
