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


def test_faults_are_one_line(jobs: JobFolder) -> None:
    jobs.write()
    for arguments, message in (
        (["--layers", "block:3"], "layers: nothing is called 'block:3'"),
        (["--log", str(jobs.folder / "none")], "holds no gradient log"),
        (["--top", "0"], "top must be at least 1, not 0"),
    ):
        result = jobs.expunge("influence", jobs.folder / "job.yaml", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
