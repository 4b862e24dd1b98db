"""Evidence as a file, and its published schema."""

import json
from pathlib import Path

import pytest

from digits_problem import QUIET, SETTINGS
from expunge import Evidence, FineTune, References, Stage, unlearn
from expunge.audit.evidence import EVIDENCE_FILE
from expunge.errors import MissingNeedError, ReferenceModelError, SavedModelError, SettingError
from expunge.problem import Problem

SCHEMA = Path(__file__).parents[2] / "docs" / "evidence.schema.json"


@pytest.fixture(scope="module")
def evidence(references: References) -> Evidence:
    method = FineTune(stages=(Stage(1e-3, steps=2),))
    return references.compare(unlearn(references.problem, method, execution=QUIET))


def test_evidence_survives_the_way_to_disk_and_back(evidence: Evidence, tmp_path: Path):
    evidence.save(tmp_path)

    assert Evidence.load(tmp_path) == evidence


def test_the_published_schema_is_that_of_the_code():
    assert json.loads(SCHEMA.read_text()) == Evidence.model_json_schema()


def test_damaged_evidence_is_refused(evidence: Evidence, tmp_path: Path):
    path = evidence.save(tmp_path)
    path.write_text(path.read_text()[:100])

    with pytest.raises(SavedModelError, match="damaged"):
        Evidence.load(tmp_path)


def test_missing_evidence_says_to_audit_first(tmp_path: Path):
    with pytest.raises(SavedModelError, match=f"{EVIDENCE_FILE}; audit"):
        Evidence.load(tmp_path)


def test_settings_of_pictures_are_those_of_images_alone(evidence: Evidence):
    assert "relearning" in evidence.settings
    assert "pictures" not in evidence.settings


def test_every_figure_has_an_interval_around_it_and_a_value_for_each_oracle(evidence: Evidence):
    for measure in (*evidence.measures, *evidence.groups):
        assert measure.unlearned.interval.low <= measure.unlearned.value + 1e-12
        assert measure.unlearned.value <= measure.unlearned.interval.high + 1e-12
        assert len(measure.oracles) == 10
        assert measure.band.low <= sum(measure.oracles) / 10 + 1e-12


def test_the_measures_are_those_that_are_promised(evidence: Evidence):
    assert [(measure.name, measure.on) for measure in evidence.measures] == [
        ("accuracy", "forget"),
        ("accuracy", "retain"),
        ("accuracy", "holdout"),
        ("accuracy", "holdout, forgotten kind"),
        ("divergence from the oracles", "forget"),
        ("divergence from the original", "forget"),
        ("disagreement with the oracles", "forget"),
        ("disagreement with the oracles", "holdout"),
        ("Tug-of-War", "all sets"),
        ("relearning, mean", "forget"),
        ("relearning, head refitted, mean", "forget"),
        ("one-shot probe", "forget"),
        ("linear probe", "forget"),
        ("accuracy, 8-bit weights", "forget"),
        ("accuracy, 4-bit weights", "forget"),
        ("accuracy", "retain, nearest to forget"),
        ("membership (loss), area", "retain"),
    ]
    assert [measure.on for measure in evidence.groups] == [str(digit) for digit in range(10)]
    assert [len(curve.unlearned) for curve in evidence.curves] == [4, 4]
    assert evidence.answers is not None
    assert sum(answer.value for answer in evidence.answers.unlearned) == pytest.approx(1)
    assert {layer.layer for layer in evidence.layers} == {"0", "2", "4"}


def test_an_audit_is_reproducible(problem: Problem, references: References, evidence: Evidence):
    again = References.prepare(
        problem, references.oracles.models, seed=references.sitting.run.seed, settings=SETTINGS, execution=QUIET
    )
    method = FineTune(stages=(Stage(1e-3, steps=2),))
    repeated = again.compare(unlearn(problem, method, execution=QUIET))

    assert repeated.measures == evidence.measures
    assert repeated.curves == evidence.curves


def test_a_model_of_another_original_is_refused(problem: Problem, references: References):
    other = Problem(references.oracles.models[0], problem.task, problem.forget, problem.retain, classes=problem.classes)
    result = unlearn(other, FineTune(stages=(Stage(1e-3, steps=1),)), execution=QUIET)

    with pytest.raises(ReferenceModelError, match="another original"):
        references.compare(result)


@pytest.mark.parametrize("missing", ["recipe", "retain", "forget"])
def test_what_an_audit_needs_is_named(problem: Problem, missing: str):
    parts = {name: getattr(problem, name) for name in ("forget", "retain", "recipe", "classes") if name != missing}

    with pytest.raises(MissingNeedError, match=missing):
        References.prepare(Problem(problem.model, problem.task, **parts), 2, execution=QUIET)


def test_one_oracle_is_no_distribution(problem: Problem, references: References):
    with pytest.raises(SettingError, match="at least two oracles"):
        References.prepare(problem, references.oracles.models[:1], execution=QUIET)


def test_equal_oracles_are_refused(problem: Problem, references: References):
    with pytest.raises(ReferenceModelError, match="equal bit for bit"):
        References.prepare(problem, [references.oracles.models[0]] * 2, execution=QUIET)


def test_a_recipe_that_throws_is_named_with_its_error(problem: Problem):
    def broken(_dataset: object, _seed: int) -> None:
        raise ValueError("no such optimiser")

    parts = Problem(problem.model, problem.task, problem.forget, problem.retain, classes=problem.classes, recipe=broken)

    with pytest.raises(ReferenceModelError, match="oracle 1 with ValueError") as caught:
        References.prepare(parts, 2, execution=QUIET)

    assert "no such optimiser" not in str(caught.value), "a message may quote data"
