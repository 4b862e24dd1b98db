"""What the command says of the cost of an audit."""

import json

import pytest

from expunge.audit.choosing import Choice, Expected
from expunge.audit.measuring import ExpectedMeasuring
from expunge.cli.costs import CostTeller, after_training, before_training, rough_duration
from job_folder import QUICK_AUDIT, JobFolder


def expected(executor: str, to_train: int, cached: int, seconds: float | None, each: float | None = None) -> Expected:
    choice = Choice(executor, "fastest of in-process, batched in a trial", seconds_each=each)
    return Expected("oracles", to_train, cached, choice, seconds, "" if seconds is not None or each else "no reason")


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (
            expected("in-process", 6, 4, 118.0),
            "10 oracles: 4 from the cache, 6 to train one after another, about 2 min",
        ),
        (expected("batched", 10, 0, 42.3), "10 oracles: 10 to train as one, about 42 s"),
        (
            expected("processes", 3, 0, None, each=8000.0),
            "3 oracles: 3 to train in several processes, about 2.2 h for each by itself",
        ),
        (
            expected("in-process", 3, 0, None),
            "3 oracles: 3 to train one after another; how long that takes is not known: no reason",
        ),
        (expected("none", 0, 5, 0.0), "5 oracles: all from the cache"),
    ],
)
def test_the_cost_in_a_sentence(one: Expected, sentence: str) -> None:
    assert before_training(one) == sentence


def test_what_was_trained_in_a_sentence() -> None:
    assert after_training(expected("none", 0, 5, 0.0)) == "5 oracles: all from the cache"
    assert after_training(expected("batched", 6, 4, 10.0)) == (
        "10 oracles: 4 from the cache, 6 trained as one (fastest of in-process, batched in a trial)"
    )


def test_measuring_is_told_and_fleets_are_kept() -> None:
    said: list[str] = []
    teller, fleet = CostTeller(said.append), expected("batched", 10, 0, 1.0)
    for one in (fleet, ExpectedMeasuring(11, 61.0), ExpectedMeasuring(1, 7.0)):
        teller(one)

    assert [line.strip() for line in said[1:]] == [
        "measuring the other 11 models takes about 61 s",
        "measuring the other model takes about 7 s",
    ]
    assert teller.fleets == [fleet]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "a few seconds"), (99.4, "about 99 s"), (5999.0, "about 100 min"), (1e4, "about 2.8 h")],
)
def test_durations_are_no_finer_than_they_are_known(seconds: float, words: str) -> None:
    assert rough_duration(seconds) == words


def test_an_audit_tells_its_cost_before_and_what_it_trained_after(
    jobs: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(jobs.folder / "cache"))
    jobs.job |= {"recipe": {"epochs": 2, "batch_size": 32}, "audit": QUICK_AUDIT}
    first = jobs.run()
    again = jobs.expunge("audit", jobs.output, "--oracles", "4", "--json")

    assert "3 oracles: 3 to train one after another; how long that takes is not known" in first.stderr
    assert "3 oracles: 3 trained one after another (too little" in " ".join(first.stdout.split())
    assert "4 oracles: 3 from the cache, 1 to train one after another, a few seconds" in again.stderr
    (fleet,) = json.loads(again.stdout)["trained"]
    assert (fleet["models"], fleet["trained"], fleet["cached"]) == ("oracles", 1, 3)
