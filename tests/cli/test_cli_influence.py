import json

import pytest

from job_folder import JobFolder


def facts(jobs: JobFolder, *arguments: str) -> dict[str, object]:
    jobs.write()
    result = jobs.expunge("influence", jobs.folder / "job.yaml", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("kind", ["gradient", "activation"])
def test_the_highest_scores_come_first_with_their_positions(jobs: JobFolder, kind: str) -> None:
    jobs.job["forget"] = {"indices": [0, 5, 9]}
    found = facts(jobs, "--kind", kind, "--top", "7")
    assert (found["kind"], found["forget_examples"]) == (kind, 3)
    highest = found["highest"]
    assert isinstance(highest, list)
    assert len(highest) == 7
    scores = [each["score"] for each in highest]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > found["mean"]
    assert not {0, 5, 9} & {each["position"] for each in highest}
    table = jobs.expunge("influence", jobs.folder / "job.yaml", "--kind", kind, "--top", "7")
    assert str(highest[0]["position"]) in table.stdout


def test_an_inverse_that_is_not_found_can_be_had_by_what_the_error_names(jobs: JobFolder) -> None:
    pytest.importorskip("dattri")
    jobs.write()
    job = str(jobs.folder / "job.yaml")
    failed = jobs.expunge("influence", job, "--kind", "inverse-hvp", "--iterations", "1", "--tolerance", "1e-6")
    assert failed.exit_code == 2
    assert "after 1 iterations" in failed.stderr
    assert "raise iterations, damping or tolerance" in failed.stderr
    for remedy in (
        ["--iterations", "1", "--tolerance", "1e9"],
        ["--iterations", "500", "--tolerance", "1e-3"],
        ["--iterations", "1", "--tolerance", "1e-3", "--damping", "1e6"],
    ):
        assert jobs.expunge("influence", job, "--kind", "inverse-hvp", *remedy).exit_code == 0, remedy
    small, large = (
        facts(jobs, "--kind", "inverse-hvp", "--iterations", "500", "--damping", damping) for damping in ("1", "1000")
    )
    assert float(str(large["deviation"])) < float(str(small["deviation"])) / 100


def test_faults_are_one_line(jobs: JobFolder) -> None:
    jobs.write()
    for arguments, message in (
        (["--layers", "block:3"], "layers: nothing is called 'block:3'"),
        (["--log", str(jobs.folder / "none")], "holds no gradient log"),
        (["--top", "0"], "top must be at least 1, not 0"),
        (["--damping", "2"], "damping: of use for the kind inverse-hvp alone"),
        (["--kind", "inverse-hvp", "--damping", "-1"], "damping must be above 0, not -1.0"),
        (["--kind", "inverse-hvp", "--iterations", "0"], "iterations must be above 0, not 0"),
    ):
        result = jobs.expunge("influence", jobs.folder / "job.yaml", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
