"""A language model is asked in other words, and what it says then stands beside the oracles."""

from typing import Any

import torch
from torch import nn

import tiny
import words
from expunge import AuditSettings, CausalLM, Run, audit, unlearn
from expunge.audit.relearning import Relearning
from expunge.audit.rewording import INSISTENT, INSISTING, NEUTRAL, PARAPHRASED, PREFIXED, reworded
from expunge.methods import FineTune, Stage
from expunge.problem import Problem, split
from expunge.training import over_batches

KINDS = (PREFIXED, INSISTENT, PARAPHRASED)
FORGOTTEN = ("ann", "bob", "cid")


def facts(paraphrased: int = 99) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [dict(row) for row in words.facts()]
    for row in rows[:paraphrased]:
        row["paraphrased_question"] = f"what is known of {row['person']} ?"
    return rows


def test_prompts_change_and_answers_do_not() -> None:
    rows = facts(4)
    long = CausalLM(words.tokenizer(), context=64)
    found = reworded(Run(long, 3, tiny.QUIET), nn.Identity(), rows)
    assert found == reworded(Run(long, 3, tiny.QUIET), nn.Identity(), rows)
    assert found[PREFIXED] != reworded(Run(long, 4, tiny.QUIET), nn.Identity(), rows)[PREFIXED]
    assert tuple(found) == KINDS
    for old, new in zip(rows, found[PREFIXED], strict=True):
        assert new["question"] in {f"{each} {old['question']}" for each in NEUTRAL}
        assert new["answer"] == old["answer"]
    assert len({new["question"].split(" where ")[0].split(" what ")[0] for new in found[PREFIXED]}) > 1
    for old, new in zip(rows, found[INSISTENT], strict=True):
        assert new == {**old, "question": f"{INSISTING} {old['question']}"}
    for old, new in zip(rows, found[PARAPHRASED], strict=False):
        assert new == {**old, "question": old["paraphrased_question"]}
    assert len(found[PARAPHRASED]) == 4


def test_what_has_no_question_or_does_not_fit_is_not_asked() -> None:
    rows = facts()
    task = CausalLM(words.tokenizer(), context=64)
    assert reworded(Run(task, 0, tiny.QUIET), nn.Identity(), ["bob lives in rome"]) == {}
    assert tuple(reworded(Run(task, 0, tiny.QUIET), words.gpt2(n_positions=20), rows)) == (PARAPHRASED,)


def test_each_rewording_stands_beside_the_oracles() -> None:
    parts = split(facts(), column_is=("person", FORGOTTEN))
    task = CausalLM(words.tokenizer(), context=64)
    recipe = words.recipe(3)
    torch.manual_seed(0)
    problem = Problem(words.gpt2(n_positions=64), task, parts.forget, parts.retain, recipe=_Longer(recipe.epochs))
    result = unlearn(problem, FineTune(stages=(Stage(1e-3, steps=2),)), execution=tiny.QUIET)
    quick = AuditSettings(Relearning(steps=(0, 2)), neighbours=0, bits=())
    evidence = audit(result, oracles=2, settings=quick, execution=tiny.QUIET)
    run = Run(task, 0, tiny.QUIET)
    for kind, rows in reworded(run, problem.model, parts.forget).items():
        measure = evidence.measure(f"probability, {kind}", "forget")
        losses = torch.cat(over_batches(run, result.model, rows, task.losses)).double()
        if kind != PREFIXED:  # whose sentences are drawn by the audit's own seed
            assert abs(measure.unlearned.value - float((-losses).exp().mean())) < 1e-5
        assert len(measure.oracles) == 2
        assert measure.aspect.judged
    off = audit(
        result,
        oracles=2,
        execution=tiny.QUIET,
        settings=AuditSettings(Relearning(steps=(0, 2)), neighbours=0, bits=(), rewording=False),
    )
    assert not [each for each in off.measures if each.name.startswith("probability, ")]


class _Longer:
    """The tests' recipe, of a model that reads longer prompts."""

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs

    def __call__(self, dataset: Any, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = words.gpt2(n_positions=64)
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(int(self.epochs)):
            batch = CausalLM(words.tokenizer()).collate([dataset[place] for place in range(len(dataset))])
            CausalLM(words.tokenizer()).losses(model, batch).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()
