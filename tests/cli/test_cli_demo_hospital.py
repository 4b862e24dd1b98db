import html
import io
import json
import stat

import pytest
from rich.console import Console

from expunge.cli import hospital
from expunge.cli.hospital_summary import print_hospital
from expunge.privacy import Tier
from expunge.states import STATE_FILE
from expunge.unlearning import read_record
from job_folder import JobFolder


def test_the_patients_are_all_there_and_parted() -> None:
    train, holdout = hospital.training_data(), hospital.holdout_data()
    assert (len(train), len(holdout)) == (450, 119)
    mean = holdout.tensors[0].mean(0)
    assert float(mean.abs().max()) < 1e-10, "the scale is that of patients who are never forgotten"


def test_patients_leave_from_the_state_alone(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "hospital", "--output", jobs.output, "--oracles", "2", "--json")
    assert result.exit_code == 0, result.output
    story = json.loads(result.stdout)
    assert [each["patients"] for each in story["deletions"]] == [1, 21]
    for each, name in zip(story["deletions"], ("first", "second"), strict=True):
        assert 0 < each["measured_distance"] <= each["claimed_bound"]
        assert each["certificate"]["tier"] == "certified"
        assert {constant["origin"] for constant in each["certificate"]["constants"]} == {"enforced", "measured"}
        assert each["accuracy"] > 0.8
        record = read_record(jobs.output / name)
        assert record.guarantee is Tier.CERTIFIED
        assert set(record.data) == {"forget"}, "no retained data were given"
        page = html.unescape((jobs.output / name / "report.html").read_text(encoding="utf-8"))
        for constant in record.certificate.constants if record.certificate else ():
            assert constant.name in page
            assert constant.meaning in page
    assert [each["request"] for each in story["refused"]] == ["the same patient again", "somebody never trained on"]
    assert "deleted before, which a state does not remember" in story["refused"][0]["error"]
    assert "never in training" in story["refused"][1]["error"]
    assert not list(jobs.output.glob(STATE_FILE))
    assert not (jobs.output / "first" / STATE_FILE).exists(), "it still holds the second request's rows"
    assert stat.S_IMODE((jobs.output / "second" / STATE_FILE).stat().st_mode) == 0o600
    hospital._clear(jobs.output)
    assert jobs.outputs() == {hospital.FACTS_FILE}


@pytest.mark.parametrize("name", ["thesis.tex", "hospital.json", "first/thesis.tex"])
def test_the_demo_overwrites_nothing_of_the_users(jobs: JobFolder, name: str) -> None:
    (jobs.output / name).parent.mkdir(parents=True)
    (jobs.output / name).write_text("precious", encoding="utf-8")
    result = jobs.expunge("demo", "hospital", "--output", jobs.output)
    assert result.exit_code == 2
    assert "not of a demonstration" in result.stderr
    assert (jobs.output / name).read_text(encoding="utf-8") == "precious"


def test_the_summary_tells_what_was_measured(jobs: JobFolder) -> None:
    stay = hospital.run_hospital(jobs.output, oracles=2, seed=1, say=lambda _: None)
    shown = io.StringIO()
    print_hospital(Console(file=shown, width=160), stay)
    text = shown.getvalue()
    assert text.count("the bound holds") == 2
    assert text.count("Refused") == 2
    assert "bound in the certificate" in text
    draws = len(stay.deletions[0].reference_accuracy)
    assert f"Each range is that of {draws} draws of retraining with noise; by chance alone" in text


def test_there_are_two_demonstrations(jobs: JobFolder) -> None:
    result = jobs.expunge("demo", "bank")
    assert result.exit_code == 2
    assert "hospital" in result.stderr
