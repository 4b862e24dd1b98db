import json
from importlib.metadata import EntryPoint, entry_points

import pytest

from expunge.cli import methods as lookup
from job_folder import JobFolder


def test_every_entry_point_is_listed_with_its_facts(jobs: JobFolder) -> None:
    result = jobs.expunge("methods", "--json")
    assert result.exit_code == 0
    listed = {entry["name"]: entry for entry in json.loads(result.stdout)}
    assert set(listed) == set(entry_points(group="expunge.methods").names)
    assert len(listed) >= 6
    assert listed["unsir"]["needs"] == ["classes", "retain"]
    assert listed["unsir"]["presets"] == ["paper", "tuned"]
    assert listed["retrain"]["tier"] == "exact"
    assert all(entry["maturity"] in {"stable", "experimental"} for entry in listed.values())


def test_the_table_names_every_method_on_its_own_line(jobs: JobFolder) -> None:
    lines = jobs.expunge("methods").stdout.splitlines()
    starts = [line.split()[0] for line in lines if line[:1].strip()]
    assert starts == ["name", *sorted(entry_points(group="expunge.methods").names)]


def test_a_broken_package_is_shown_and_does_not_hide_the_others(
    jobs: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        EntryPoint("broken", "no_such_package_of_methods:Method", lookup.GROUP),
        EntryPoint("odd", "json:dumps", lookup.GROUP),
        EntryPoint("unsir", "expunge.methods:UNSIR", lookup.GROUP),
    ]
    monkeypatch.setattr(lookup, "entry_points", lambda group: _Points(points))
    listed = json.loads(jobs.expunge("methods", "--json").stdout)
    assert "no_such_package_of_methods" in listed[0]["error"]
    assert "is not a Method" in listed[1]["error"]
    assert listed[2]["tier"] == "empirical"
    jobs.job["method"] = {"name": "broken"}
    result = jobs.run()
    assert result.exit_code == 2
    assert "method.name: broken is installed but cannot be loaded" in result.stderr


def test_two_packages_with_one_name_are_not_chosen_between(jobs: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("unsir", f"expunge.methods:{name}", lookup.GROUP) for name in ("UNSIR", "FineTune")]
    monkeypatch.setattr(lookup, "entry_points", lambda group: _Points(points))
    result = jobs.run()
    assert result.exit_code == 2
    assert "several installed packages" in result.stderr


class _Points(list[EntryPoint]):
    @property
    def names(self) -> set[str]:
        return {point.name for point in self}
