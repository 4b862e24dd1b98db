"""What an audit says of its cost before it begins."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from digits_problem import QUIET, SETTINGS
from expunge import Fleet, FleetSettings, Problem, References, Supervised, TrainingJob
from expunge.audit import choosing, measuring
from expunge.audit.choosing import Expected
from expunge.audit.executors import InProcess
from expunge.audit.measuring import ExpectedMeasuring
from expunge.networks import mlp


def recipe(epochs: float = 30) -> Supervised:
    return dataclasses.replace(tiny.recipe(tiny.SHAPES["mlp"]), epochs=epochs)


def own_recipe(dataset: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(12, 4, (8,))


def told(one: Any, count: int, cache: Path | bool = False, executor: Any = "in-process") -> Expected:
    """What is said of a fleet, checked to be said before anything is trained."""
    jobs = [TrainingJob(tiny.vectors(), seed) for seed in range(count)]
    said: list[Expected] = []
    fleet = Fleet(one, jobs, "shadows", mlp(12, 4, (8,)))
    trained = fleet.train(FleetSettings(executor, cache), progress=False, announce=said.append)
    (expected,) = said
    assert (expected.title, expected.cached, expected.cached + expected.to_train) == ("shadows", trained.cached, count)
    assert expected.choice.executor == trained.choice.executor
    return expected


def test_it_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(expected: Expected) -> None:
        raise Stop

    monkeypatch.setattr(InProcess, "train", lambda *_: pytest.fail("trained first"))
    with pytest.raises(Stop):
        Fleet(own_recipe, [TrainingJob(tiny.vectors(), 0)]).train(
            FleetSettings("in-process", cache=False), progress=False, announce=stop
        )


def test_a_few_steps_are_timed_where_no_trial_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_seconds_a_step", lambda *_, **__: 0.01)
    steps = 30 * 4
    alone, together = told(recipe(), 3), told(recipe(), 3, executor="batched")

    assert alone.seconds == pytest.approx(3 * steps * 0.01)
    assert alone.choice.seconds_each == pytest.approx(steps * 0.01)
    assert together.seconds == pytest.approx(steps * 0.01), "a step is one of all"


def test_what_was_timed_is_about_what_training_takes() -> None:
    jobs = [TrainingJob(tiny.vectors(), seed) for seed in range(3)]
    ratios: list[float] = []
    for _ in range(3):
        said: list[Expected] = []
        settings = FleetSettings("in-process", cache=False)
        trained = Fleet(recipe(60), jobs).train(settings, progress=False, announce=said.append)
        ratios.append((said[0].seconds or 0) / sum(seconds or 0 for seconds in trained.seconds))

    assert 0.02 < sorted(ratios)[1] < 50  # right to an order of magnitude on a machine with other work


def test_the_trial_tells_where_one_is_made() -> None:
    expected = told(recipe(100), 8, executor="auto")

    assert expected.seconds == expected.choice.expected_seconds[expected.choice.executor]


def test_models_in_the_cache_tell_what_the_others_cost(tmp_path: Path) -> None:
    first, second, third = (told(own_recipe, count, tmp_path) for count in (2, 2, 5))

    assert (first.to_train, second.to_train, third.to_train) == (2, 0, 3)
    assert first.seconds is None
    assert second.seconds == 0
    assert third.seconds is not None
    assert third.seconds > 0


@pytest.mark.parametrize(
    ("one", "reason"), [(own_recipe, "function of its own"), (recipe(1), "too few steps")], ids=["own", "short"]
)
def test_where_nothing_is_known_the_reason_is_said(one: Any, reason: str) -> None:
    expected = told(one, 2)

    assert expected.seconds is None
    assert reason in expected.unknown


def test_a_trial_that_fails_leaves_the_cost_unknown() -> None:
    diverging = dataclasses.replace(recipe(), optimizer=dataclasses.replace(recipe().optimizer, learning_rate=1e30))
    jobs = [TrainingJob(tiny.vectors(), seed) for seed in range(2)]
    expected = choosing.expect("shadows", diverging, jobs, *choosing.choose(diverging, jobs, FleetSettings()), [])

    assert (expected.seconds, expected.unknown) == (None, "a trial of a few steps failed")


@pytest.mark.parametrize("slow", [False, True])
def test_measuring_is_announced_where_it_takes_longer_than_a_moment(
    problem: Problem, references: References, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    clock = iter(range(0, 10**6, 40 if slow else 4))
    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    said: list[Any] = []
    models = list(references.oracles.models[:3])
    References.prepare(problem, models, seed=1, settings=SETTINGS, execution=QUIET, announce=said.append)

    # one result besides the original and three oracles; of quick ones two are measured before
    assert said == [ExpectedMeasuring(4, 160.0) if slow else ExpectedMeasuring(3, 12.0)]
