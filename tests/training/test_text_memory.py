"""Language models in less memory: blocks computed twice give the same numbers, bfloat16 nearly the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

import tiny
import words
from expunge import Execution, Method, Problem, unlearn
from expunge.errors import SettingError
from expunge.methods import NPO, RMU, GradDiff, GradientAscent, GradientReversal, LoraSettings, Retrain
from expunge.states import GradientLog, log_training
from expunge.training import Run

SMALL: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4}
METHODS: dict[str, Method] = {
    "recipe": Retrain(),
    "npo": NPO(**SMALL, retain_loss="kl"),
    "npo, lora": NPO(**SMALL, adapter=LoraSettings(rank=2, dropout=0.1)),
    "grad-diff": GradDiff(**SMALL),
    "grad-diff, lora": GradDiff(**SMALL, adapter=LoraSettings(rank=2)),
    "gradient-ascent": GradientAscent(1e-3, epochs=2, batch_size=4),
    "rmu": RMU(**SMALL),
    "gradient-reversal": GradientReversal(target_loss=2.2, overshoot=0.4, repair_steps=5, repair_learning_rate=1e-3),
}
TWICE = dataclasses.replace(tiny.QUIET, gradient_checkpointing=True)
HALF = dataclasses.replace(tiny.QUIET, precision="bf16")
BF16_TOLERANCE = 0.03
"""Relative, of the objective at each step: bfloat16 has a step of 2^-8 = .004, and some hundred roundings follow."""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """With dropout, whose draws must be the same when a block is computed again."""
    recipe = dataclasses.replace(words.recipe(epochs=4), build=build)
    run = Run(words.TASK, 0, tiny.QUIET)
    model, log = log_training(recipe, words.facts(), run, tmp_path_factory.mktemp("memory") / "log")
    return words.problem(model, recipe=dataclasses.replace(recipe, epochs=2), state=log)


def build() -> torch.nn.Module:
    return words.gpt2(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)


def result(problem: Problem, method: Method, execution: Execution) -> Any:
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    recipe = dataclasses.replace(problem.recipe, execution=execution)  # type: ignore[type-var]
    return unlearn(dataclasses.replace(problem, recipe=recipe), method, seed=2, execution=execution)


@pytest.mark.filterwarnings("ignore:over-exposed")
@pytest.mark.parametrize("name", METHODS)
def test_blocks_that_are_computed_twice_give_the_same_bits(
    name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, forward = [0], GPT2MLP.forward

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return forward(*arguments, **named)

    monkeypatch.setattr(GPT2MLP, "forward", counted)
    plain = result(problem, METHODS[name], tiny.QUIET)
    once, calls[0] = calls[0], 0
    recomputed = result(problem, METHODS[name], TWICE)
    steps = sum(phase.steps for phase in plain.record.phases if phase.name != "reverse")
    assert calls[0] >= once + steps, "nothing was computed twice"
    assert recomputed.record.result_digest == plain.record.result_digest
    assert [p.history for p in recomputed.record.phases] == [p.history for p in plain.record.phases]
    assert recomputed.record.execution["gradient_checkpointing"] is True
    for one, other in zip(recomputed.model.modules(), plain.model.modules(), strict=True):
        assert set(vars(one)) == set(vars(other)), "the result computes its blocks once"
        assert vars(one).get("gradient_checkpointing") == vars(other).get("gradient_checkpointing")


@pytest.mark.filterwarnings("ignore:over-exposed")
@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_is_close(name: str, problem: Problem) -> None:
    plain = result(problem, METHODS[name], tiny.QUIET)
    half = result(problem, METHODS[name], HALF)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    assert half.record.execution["precision"] == "bf16"
    wanted = [loss for phase in plain.record.phases for loss in phase.history]
    assert [loss for phase in half.record.phases for loss in phase.history] == pytest.approx(
        wanted, rel=BF16_TOLERANCE, abs=BF16_TOLERANCE
    )
    assert half.record.result_digest != plain.record.result_digest


def test_both_together_are_what_bfloat16_is(problem: Problem) -> None:
    both = dataclasses.replace(HALF, gradient_checkpointing=True)
    first, second = (result(problem, METHODS["npo"], each).record.result_digest for each in (HALF, both))
    assert first == second


def test_the_log_of_a_training_that_computes_twice_is_the_same(tmp_path: Path) -> None:
    logs: list[GradientLog] = []
    for name, execution in {"once": tiny.QUIET, "twice": TWICE}.items():
        recipe = dataclasses.replace(words.recipe(epochs=1), build=build, execution=execution)
        logs.append(log_training(recipe, words.facts(), Run(words.TASK, 0, execution), tmp_path / name)[1])
    once, twice = ([(each.kind, each.example, each.step, each.checksum) for each in log.store.records] for log in logs)
    assert once == twice
    assert len(once) > len(words.facts())


def test_a_model_that_cannot_is_refused(mlp_problem: Problem) -> None:
    with pytest.raises(SettingError, match="gradient_checkpointing needs a Hugging Face model that supports it"):
        unlearn(mlp_problem, GradientAscent(), execution=TWICE)
    with pytest.raises(SettingError, match="gradient_checkpointing must be one of False, True"):
        dataclasses.replace(tiny.QUIET, gradient_checkpointing="yes")  # type: ignore[arg-type]
