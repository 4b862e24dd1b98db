"""The audit's own audit, in miniature."""

import dataclasses
from functools import partial
from pathlib import Path

import pytest

import tiny
from expunge import AuditSettings, FleetSettings, Relearning, Supervised
from expunge.audit import self_test
from expunge.audit.choosing import Expected
from expunge.audit.self_test import Outcome, Subject
from expunge.networks import mlp
from expunge.tasks import Classification


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """Ten well separated kinds, and few oracles of which each is trained in an instant."""
    monkeypatch.setattr(self_test, "POOL", 5)
    monkeypatch.setattr(self_test, "REFERENCES", 4)
    quick = AuditSettings(Relearning(forget_examples=5, retain_examples=20, steps=(0, 2)))
    monkeypatch.setattr(self_test, "SETTINGS", quick)
    task = Classification(10)
    recipe = Supervised(partial(mlp, 12, 10, (16,)), task, epochs=4, batch_size=32, execution=tiny.QUIET)
    recipe = dataclasses.replace(recipe, optimizer=tiny.recipe(tiny.SHAPES["mlp"]).optimizer)
    train, holdout = (tiny.vectors(30, classes=10, spread=0.4, seed=seed) for seed in (0, 1))
    return Subject(train, holdout, recipe)


def test_a_second_self_test_trains_nothing_and_finds_the_same(subject: Subject, tmp_path: Path) -> None:
    said: list[list[Expected]] = []

    def outcomes() -> list[Outcome]:
        said.append([])
        settings = FleetSettings("batched", cache=tmp_path)
        return self_test.self_test(subject, 1, progress=False, fleet=settings, announce=said[-1].append)  # type: ignore[arg-type]

    first, second = outcomes(), outcomes()

    assert [[(fleet.to_train, fleet.cached) for fleet in each] for each in said] == [[(8, 0), (6, 0)], [(0, 8), (0, 6)]]
    assert first == second
    assert len(first) == 12
    assert [each.name for each in first if each.truth] == ["retrained (class)", "retrained (outliers)"]
    assert next(each for each in first if each.name == "untouched original").found == 1
