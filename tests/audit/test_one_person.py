"""An audit of a single person's deletion: what needs several forget examples is left out and said, the rest is done."""

from functools import partial

import pytest

import heads
import tiny
from expunge import (
    AuditSettings,
    FineTune,
    FleetSettings,
    HeadOptimum,
    NewtonRemoval,
    Problem,
    Relearning,
    Stage,
    Supervised,
    Unlearned,
    audit,
    record,
    split,
    unlearn,
)
from expunge.audit import Evidence
from expunge.audit.evidence import Side
from expunge.networks import mlp
from expunge.report.page import render

SETTINGS = AuditSettings(Relearning(steps=(0, 2), retained_only=True))
NO_CACHE = FleetSettings(cache=False)
SIGMA = 0.4


@pytest.fixture(scope="module")
def certified() -> Unlearned:
    """A person leaves a head; oracles are draws of the certificate's reference."""
    data, holdout = heads.data(), heads.data(60, seed=3)
    recipe = HeadOptimum(heads.clipped, tiny.TASK, heads.L2, tolerance=1e-9)
    model, parts = recipe(data, 0), split(data, indices=[5])
    state = record(model, tiny.TASK, data, l2=heads.L2, feature_norm=1.0)
    noisy = recipe.with_noise(SIGMA)
    problem = Problem(model, tiny.TASK, parts.forget, parts.retain, holdout, recipe=noisy, state=state)
    return unlearn(problem, NewtonRemoval(sigma=SIGMA), execution=tiny.QUIET)


@pytest.fixture(scope="module")
def evidence(certified: Unlearned) -> Evidence:
    return audit(certified, oracles=4, settings=SETTINGS, execution=tiny.QUIET, fleet=NO_CACHE)


def test_what_needs_several_examples_is_left_out_and_said(evidence: Evidence) -> None:
    assert not evidence.curves
    assert not evidence.membership
    assert not [measure for measure in evidence.measures if "relearning" in measure.name or "probe" in measure.name]
    said = [note for note in evidence.notes if "one forget example" in note]
    assert len(said) == 1
    assert all(word in said[0] for word in ("relearning", "probes", "membership", "left out"))


def test_the_rest_is_measured_and_judged(evidence: Evidence) -> None:
    names = {(measure.name, measure.on) for measure in evidence.measures}
    on_sets = {("accuracy", name) for name in ("forget", "retain", "holdout")}
    assert on_sets | {("divergence from the oracles", "forget"), ("accuracy, 4-bit weights", "forget")} <= names
    assert evidence.measure("accuracy", "retain").side is not Side.ABOVE
    assert [leak.position for leak in evidence.leaks] == [0]
    assert len(evidence.percentiles) == 2


def test_the_evidence_is_saved_and_shown(certified: Unlearned, evidence: Evidence) -> None:
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
    page = render(certified.record, evidence)
    assert "No relearning test was made." in page
    assert "one forget example" in page


def test_with_shadows_the_person_has_an_epsilon() -> None:
    data = tiny.vectors(per_class=20)
    recipe = Supervised(partial(mlp, tiny.FEATURES, tiny.CLASSES, (16,)), tiny.TASK, epochs=2, execution=tiny.QUIET)
    parts = split(data, indices=[3])
    holdout = tiny.vectors(per_class=40, seed=4)
    problem = Problem(recipe(data, 0), tiny.TASK, parts.forget, parts.retain, holdout, recipe=recipe)
    result = unlearn(problem, FineTune((Stage(1e-3, steps=2),)), execution=tiny.QUIET)
    found = audit(result, oracles=5, shadows=2, settings=SETTINGS, execution=tiny.QUIET, fleet=NO_CACHE)
    assert found.epsilons is not None
    assert len(found.epsilons.estimates) == 1
    assert set(found.margins) == {"forget", "retain", "holdout"}
    assert not found.curves
