"""Rehearsals resemble requests, the ranking is by the gap, and the winner is run with the ranking in its record."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import nn

import expunge.recommending.recommendation as recommendation
import tiny
from expunge import (
    FineTune,
    FleetSettings,
    Maturity,
    Method,
    Need,
    Problem,
    Retrain,
    Run,
    Stage,
    Tier,
    recommend,
    split,
)
from expunge.audit.gap import gap, gaps_of_oracles, standardised_distances
from expunge.errors import DivergedError, ForgetSetError, MissingNeedError, SettingError
from expunge.recommending import CANDIDATES, Candidate, Recommendation, Spending
from expunge.recommending.budget import Budget
from expunge.recommending.rehearsal import rehearse
from expunge.unlearning import Record, Unlearned

NO_CACHE = FleetSettings("in-process", cache=False)
SHAPE = tiny.SHAPES["mlp"]
NOTHING = Candidate(FineTune, lambda _s, m: FineTune((Stage(1e-12 * m, steps=1),), weight_decay=0.0))
ALL = Candidate(Retrain, lambda _s, _m: Retrain())


@cache
def trained() -> nn.Module:
    return tiny.recipe(SHAPE)(tiny.vectors(), 0)


def asked(*, classes: tuple[int, ...] | None = (0,), rows: range | None = None) -> Problem:
    parts = split(tiny.vectors(), classes=classes) if rows is None else split(tiny.vectors(), indices=rows)
    return Problem(
        trained(), tiny.TASK, parts.forget, parts.retain, tiny.vectors(20, seed=1), parts.classes, tiny.recipe(SHAPE)
    )


def recommended(problem: Problem, candidates: Mapping[str, Candidate], **options: Any) -> Recommendation:
    given: dict[str, Any] = {
        "fleet": FleetSettings("in-process", cache=False),
        "execution": tiny.QUIET,
        "rates": (1.0,),
        "budget": 1.0,
    }
    return recommend(problem, candidates=candidates, **(given | options))


@cache
def real_and_sham() -> Recommendation:
    return recommended(asked(), {"nothing": NOTHING, "all": ALL, "text": CANDIDATES["NPO"]})


def test_a_class_is_rehearsed_by_another_class_and_all_data_are_there() -> None:
    problem = asked(classes=(0, 1))
    other = rehearse(problem, 0, tiny.QUIET).problem
    assert other.forget is not None
    assert other.retain is not None
    assert len(other.classes) == 2
    assert set(other.classes).isdisjoint({0, 1})
    assert len(other.forget) + len(other.retain) == 120
    kept = tiny.TASK.labels_of(other.retain)
    assert set(kept.tolist()) == {0, 1}


def test_which_class_follows_from_the_seed() -> None:
    seeds = [rehearse(asked(), seed, tiny.QUIET).problem.classes for seed in range(12)]
    again = [rehearse(asked(), seed, tiny.QUIET).problem.classes for seed in range(12)]
    assert seeds == again
    assert len(set(seeds)) > 1


def test_rows_are_rehearsed_by_rows_of_the_same_classes_that_are_as_easy() -> None:
    losses = nn.functional.cross_entropy(
        tiny.logits(trained(), tiny.vectors()), tiny.vectors().tensors[1], reduction="none"
    )
    hardest = losses.argsort(descending=True)[:10]
    parts = split(tiny.vectors(), indices=hardest)
    problem = dataclasses.replace(asked(), forget=parts.forget, retain=parts.retain, classes=())
    other = rehearse(problem, 0, tiny.QUIET).problem
    assert other.forget is not None
    assert other.classes == ()
    labels = [tiny.TASK.labels_of(data).tolist() for data in (parts.forget, other.forget)]
    assert sorted(labels[0]) == sorted(labels[1])
    inputs = tiny.tensors_of(parts.retain)[0]
    chosen = [tiny.TASK.collate([other.forget[place]])["inputs"] for place in range(10)]
    places = [int((inputs == each).all(1).nonzero()[0]) for each in chosen]
    kept = losses[parts_of_retain(hardest)]
    assert kept[places].mean() > kept.mean() + 2 * kept.std() / 10**0.5  # rows drawn at random would not be so hard


def parts_of_retain(left_out: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(120, dtype=torch.bool)
    mask[left_out] = False
    return mask


def test_too_little_to_rehearse_with_is_refused() -> None:
    with pytest.raises(ForgetSetError, match="only 1 are kept"):
        rehearse(asked(classes=(0, 1, 2)), 0, tiny.QUIET)


def test_retraining_is_nearer_than_doing_nothing_and_is_run() -> None:
    found = real_and_sham()
    first, second = found.choice.ranking
    assert [first.method, second.method] == ["all", "nothing"]
    assert first.gap is not None
    assert second.gap is not None
    assert second.gap > 3 * first.gap
    assert first.gap < 2 * max(found.choice.gaps_of_oracles)
    assert found.method == Retrain()
    assert found.choice.chosen == 0
    assert "CausalLM" in found.choice.left_out["text"]
    assert "1 other kind" in found.choice.rehearsal


def test_the_ranking_stands_in_the_sealed_record(tmp_path: Path) -> None:
    found = real_and_sham()
    done = found.unlearn(seed=3, execution=tiny.QUIET)
    assert done.record.choice == found.choice
    assert done.record.method == "Retrain"
    assert done.record.is_sealed_by(done.key)
    done.save(tmp_path)
    again = Unlearned.load(tmp_path, found.problem)
    assert again.record == done.record
    changed = done.record.model_copy(update={"choice": found.choice.model_copy(update={"oracles": 99})})
    assert not changed.is_sealed_by(done.key)
    assert tiny.accuracy(done.model, split(tiny.vectors(), classes=[0]).forget) == 0


def test_the_seal_of_a_record_without_a_choice_is_as_it_was() -> None:
    record = real_and_sham().unlearn(execution=tiny.QUIET).record.model_copy(update={"choice": None})
    fields = record.model_dump(mode="json", exclude={"seal", "choice"})
    assert Record.model_validate(fields | {"seal": "x"}).sealed(b"key").seal == record.sealed(b"key").seal
    assert not record.sealed(b"key").model_copy(update={"choice": real_and_sham().choice}).is_sealed_by(b"key")


def test_the_same_seed_gives_the_same_ranking() -> None:
    chosen = {name: CANDIDATES[name] for name in ("FineTune", "EUK", "NegGradPlus")}
    first, second = (recommended(asked(rows=range(8)), chosen, oracles=2, seed=5) for _ in range(2))
    assert [(trial.method, trial.gap) for trial in first.choice.ranking] == [
        (trial.method, trial.gap) for trial in second.choice.ranking
    ]
    assert first.method == second.method
    assert "nothing would be left as it is" in first.choice.left_out["EUK"]  # said only once it sees the model


def test_trials_and_oracles_are_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = FleetSettings("in-process", cache=tmp_path)
    chosen = {"FineTune": CANDIDATES["FineTune"]}
    first = recommended(asked(), chosen, oracles=2, fleet=fleet, rates=(1.0, 4.0))

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a trial was run again")

    monkeypatch.setattr(recommendation._Trials, "_outcome", refused)
    second = recommended(asked(), chosen, oracles=2, fleet=fleet, rates=(1.0, 4.0))
    assert second.choice == first.choice
    with pytest.raises(AssertionError, match="run again"):
        recommended(asked(), chosen, oracles=2, fleet=fleet, rates=(2.0,))


@dataclasses.dataclass(frozen=True)
class Diverges(Method):
    needs: ClassVar = frozenset({Need.RETAIN})
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "none"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        raise DivergedError("it diverged")


def test_the_winner_is_given_the_size_of_the_real_request() -> None:
    """Its class has thirty rows and the others twenty, so that there are fewer to train on than in the rehearsal."""
    whole = asked()
    assert whole.retain is not None
    labels = tiny.TASK.labels_of(whole.retain)
    some = torch.cat([(labels == label).nonzero().flatten()[:20] for label in (1, 2, 3)])
    problem = dataclasses.replace(whole, retain=torch.utils.data.Subset(whole.retain, some.tolist()))
    found = recommended(problem, {"FineTune": CANDIDATES["FineTune"]}, oracles=2, budget=0.5)
    tried = found.choice.ranking[0].settings["stages"][0]["epochs"]
    assert isinstance(found.method, FineTune)
    assert found.method.stages[0].epochs == pytest.approx(tried * 70 / 60)


def test_what_diverges_comes_last_and_is_not_run() -> None:
    candidates = {"a": Candidate(Diverges, lambda _s, _m: Diverges()), "nothing": NOTHING}
    found = recommended(asked(), candidates, oracles=2)
    assert [trial.method for trial in found.choice.ranking] == ["nothing", "a"]
    assert found.choice.ranking[1].gap is None
    assert found.choice.ranking[1].note == "diverged"
    with pytest.raises(SettingError, match="raise the budget"):
        recommended(asked(), {"a": candidates["a"]}, oracles=2)


def test_what_takes_longer_than_the_budget_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"slow": recommendation.Tried(0.1, 60.0, 1), "fast": recommendation.Tried(0.9, 1.0, 1)}
    monkeypatch.setattr(
        recommendation._Trials, "run", lambda _self, methods: ({key: outcomes[key[0]] for key in methods}, {})
    )
    found = recommended(asked(), {"slow": ALL, "fast": NOTHING}, oracles=2, budget="30 s")
    assert [trial.note for trial in found.choice.ranking] == ["over the budget", ""]
    assert found.choice.chosen == 1
    assert isinstance(found.method, FineTune)


def test_what_takes_more_examples_than_a_share_pays_for_is_not_run() -> None:
    def passes(count: float) -> Candidate:
        stage = Stage(0.05, epochs=count)
        return Candidate(FineTune, lambda spending, _: FineTune((stage,), batch_size=spending.batch_size))

    share = 1 / tiny.recipe(SHAPE).epochs  # one pass
    found = recommended(asked(), {"one": passes(1), "three": passes(3)}, oracles=2, budget=share)
    notes = {trial.method: trial.note for trial in found.choice.ranking}
    assert notes == {"one": "", "three": "over the budget"}
    assert found.method == passes(1).make(Spending.of(asked(), 1), 1.0)
    with pytest.raises(SettingError, match="raise the budget"):
        recommended(asked(), {"three": passes(3)}, oracles=2, budget=share)


def test_that_no_method_suits_is_said_before_an_oracle_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> None:
        pytest.fail("oracles were trained")

    monkeypatch.setattr(recommendation.References, "prepare", train)
    with pytest.raises(MissingNeedError, match="no method can be tried on this request: text: NPO works on CausalLM"):
        recommended(asked(), {"text": CANDIDATES["NPO"]})


def test_what_is_missing_or_cannot_be_used_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(MissingNeedError, match="recipe="):
        recommended(dataclasses.replace(asked(), recipe=None), {"nothing": NOTHING})
    with pytest.raises(MissingNeedError, match="retain="):
        recommended(dataclasses.replace(asked(), retain=None), {"nothing": NOTHING})
    for rates in ((), 4, "4", ("4",), (0,), (1, float("inf"))):
        with pytest.raises(SettingError, match=r"rates must be multiples above 0 .*such as \(1, 4, 16\), not"):
            recommended(asked(), {"nothing": NOTHING}, rates=rates)
    with pytest.raises(SettingError, match="candidates is empty"):
        recommended(asked(), {})
    with pytest.raises(SettingError, match=r"candidates\['mine'\] is FineTune\(.*give `expunge.recommending.Candidate"):
        recommended(asked(), cast("dict[str, Candidate]", {"mine": FineTune()}))


@pytest.mark.parametrize(
    ("given", "share", "seconds"),
    [(0.2, 0.2, None), ("20%", 0.2, None), ("20 %", 0.2, None), ("90 s", None, 90.0), ("1", 1.0, None)],
)
def test_budgets_are_read(given: float | str, share: float | None, seconds: float | None) -> None:
    assert Budget.read(given) == Budget(share, seconds)


@pytest.mark.parametrize("given", [0, 1.5, "200%", "-3 s", "soon", "nan", "inf s", ""])
def test_budgets_that_cannot_be_used_are_refused(given: float | str) -> None:
    with pytest.raises(SettingError, match="budget"):
        Budget.read(given)


def test_budgets_are_counted_in_examples() -> None:
    spending = Spending(examples=3000, retain=1000, forget=100, batch_size=64)
    assert spending.epochs() == pytest.approx(3)
    assert spending.epochs(1, 1, fixed=800) == pytest.approx(2)
    assert spending.whole(1, 1) == 2
    assert spending.whole(1, 1, fixed=5000) == 1
    assert spending.alone() == 10


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_can_be_made_at_any_budget(name: str) -> None:
    candidate = CANDIDATES[name]
    for examples in (50.0, 1000.0, 30_000.0):
        made = candidate.make(Spending(examples, 1000, 60, 32, 10), 4.0)
        assert isinstance(made, candidate.kind)
        assert 0 < candidate.retained(Spending(examples, 1000, 60, 32, 10)) <= 1


def test_the_gap_is_the_root_mean_square_of_distances_over_one_oracles_deviation() -> None:
    evidence = expunge_audit()
    distances = standardised_distances(evidence)
    assert gap(evidence) == pytest.approx(np.sqrt(np.mean(np.square(list(distances.values())))))
    measure = evidence.measure("accuracy", "forget")
    scale = max(np.std(measure.oracles, ddof=1), 1 / 30) * (1 + 1 / 3) ** 0.5
    expected = abs(measure.unlearned.value - np.mean(measure.oracles)) / max(scale, measure.margin)
    assert distances["accuracy", "forget"] == pytest.approx(expected)
    assert len(gaps_of_oracles(evidence)) == 3


def expunge_audit() -> Any:
    from expunge import audit, unlearn

    done = unlearn(asked(), FineTune((Stage(0.01, steps=2),)), execution=tiny.QUIET)
    return audit(done, oracles=3, execution=tiny.QUIET, fleet=NO_CACHE)
