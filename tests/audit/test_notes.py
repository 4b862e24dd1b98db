"""What evidence says about its own conditions."""

import dataclasses

import pytest
import torch
from torch.utils.data import ConcatDataset, TensorDataset

from digits_problem import FORGOTTEN, QUIET, SETTINGS
from expunge import Problem, References, unlearn
from expunge.audit.notes import duplicates
from expunge.data import subset
from expunge.methods import FineTune, Stage


def notes_of(problem: Problem, references: References) -> list[str]:
    models = list(references.oracles.models[:3])
    prepared = References.prepare(problem, models, seed=1, settings=SETTINGS, execution=QUIET)
    result = unlearn(problem, FineTune((Stage(1e-3, steps=1),)), execution=QUIET)
    return prepared.compare(result).notes


def test_duplicates_are_counted_whatever_their_place(problem: Problem):
    inputs, labels = torch.randn(6, 64), torch.tensor([0, 1, 2, 3, 4, 5])
    forget = TensorDataset(inputs[[0, 1, 1, 5]], labels[[0, 1, 1, 5]])
    relabelled = TensorDataset(inputs[[1, 2, 3]], labels[[1, 2, 0]])

    assert duplicates(problem.task, forget, TensorDataset(inputs[[4, 1, 0]], labels[[4, 1, 0]])) == 3
    assert duplicates(problem.task, forget, relabelled) == 2
    assert duplicates(problem.task, forget, TensorDataset(inputs[[2]], labels[[2]])) == 0


def test_evidence_says_that_forget_examples_are_also_retained(problem: Problem, references: References):
    again = subset(problem.forget, torch.arange(3))
    spoilt = dataclasses.replace(problem, classes=(), retain=ConcatDataset([problem.retain, again]))

    assert any(note.startswith("3 forget examples are also in the retain set") for note in notes_of(spoilt, references))


def test_evidence_says_that_an_oracle_is_no_match_for_the_original(problem: Problem, references: References):
    poor = problem.recipe.build()
    prepared = References.prepare(
        problem, [*references.oracles.models[:2], poor], seed=1, settings=SETTINGS, execution=QUIET
    )

    (note,) = prepared.conditions.notes
    assert note.startswith("oracle 3 reaches 0.")


def test_several_oracles_that_are_no_match_are_one_note(problem: Problem, references: References):
    poor = [problem.recipe.build() for _ in range(3)]
    prepared = References.prepare(
        problem, [references.oracles.models[0], *poor], seed=1, settings=SETTINGS, execution=QUIET
    )

    (note,) = prepared.conditions.notes
    assert note.startswith("3 of 4 oracles reach at worst 0.")
    assert [prepared.conditions.unusable] == [
        "Most oracles are much worse than the original on the retain set, so nothing can be said; mend the recipe."
    ]


def test_many_shared_examples_forbid_to_call_a_model_indistinguishable(problem: Problem, references: References):
    models = list(references.oracles.models[:3])

    def reservations(shared: int) -> list[str]:
        again = ConcatDataset([problem.retain, subset(problem.forget, torch.arange(shared))])
        spoilt = dataclasses.replace(problem, classes=(), retain=again)
        return list(
            References.prepare(spoilt, models, seed=1, settings=SETTINGS, execution=QUIET).conditions.reservations
        )

    assert reservations(13) == []
    assert reservations(14)[0].startswith("14 of 132 forget examples are also in the retain set")


@pytest.mark.parametrize(("holdout", "missing"), [("none", "is no holdout"), ("few", "are too few")])
def test_evidence_says_why_membership_was_not_attacked(
    problem: Problem, references: References, holdout: str, missing: str
):
    few = subset(problem.holdout, torch.arange(30)) if holdout == "few" else None
    problem = dataclasses.replace(problem, holdout=few)

    (note,) = notes_of(problem, references)

    assert f"there {missing}" in note


def test_a_sound_audit_has_no_notes_and_attacks_the_forgotten_kind(problem: Problem, references: References):
    assert references.conditions.notes == []
    evidence = references.compare(unlearn(problem, FineTune((Stage(1e-3, steps=1),)), execution=QUIET))

    attack = evidence.membership[0]
    labels = problem.task.labels_of(problem.holdout)
    assert attack.unlearned.unseen_examples == int((labels == FORGOTTEN).sum())
    assert len(attack.oracles) == 10
    assert len(evidence.percentiles) == 2
