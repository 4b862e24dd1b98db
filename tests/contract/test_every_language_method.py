"""What holds of every method that works on text: a new one is a new row in METHODS."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import expunge.methods
import tiny
import words
from expunge import CausalLM, Need, Problem, Record, unlearn
from expunge.errors import DataError, DivergedError, MissingNeedError, SettingError, UnsupportedTaskError
from expunge.methods import (
    NPO,
    RMU,
    UNDIAL,
    Extrapolate,
    FineTune,
    GradDiff,
    GradientAscent,
    IdkDPO,
    LoraSettings,
    Method,
    NegGradPlus,
    Retrain,
    SimNPO,
    Stage,
    TaskNegation,
)
from expunge.methods.npo import npo_loss
from expunge.storage import digest_model

REFUSALS = ("not known .", "what is the job ?")

OWN: dict[str, Method] = {
    "GradDiff": GradDiff(1e-3, epochs=1, batch_size=4),
    "GradDiff KL": GradDiff(1e-3, epochs=1, batch_size=4, retain_loss="kl"),
    "NPO": NPO(1e-3, epochs=1, batch_size=4),
    "SimNPO": SimNPO(1e-3, epochs=1, batch_size=4),
    "IdkDPO": IdkDPO(1e-3, epochs=1, batch_size=4, refusals=REFUSALS),
    "RMU": RMU(1e-3, epochs=1, batch_size=4),
    "UNDIAL": UNDIAL(1e-3, epochs=1, batch_size=4),
    "TaskNegation": TaskNegation(1e-3, epochs=1, batch_size=4, scale=1.0),
    "NPO LoRA": NPO(1e-3, epochs=1, batch_size=4, adapter=LoraSettings(rank=2)),
}
GENERAL: dict[str, Method] = {
    "Retrain": Retrain(),
    "FineTune": FineTune((Stage(0.01, steps=3),), batch_size=8),
    "Extrapolate": Extrapolate(learning_rate=1e-3, epochs=1, batch_size=8),
    "GradientAscent": GradientAscent(1e-3, epochs=2, batch_size=4),
    "NegGradPlus": NegGradPlus(epochs=1, batch_size=4),
}
METHODS = OWN | GENERAL

by_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
by_own_method = pytest.mark.parametrize("method", OWN.values(), ids=OWN)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return words.problem(words.recipe(epochs=4)(words.facts(), seed=0), recipe=words.recipe(epochs=2))


@by_method
def test_forgets_and_leaves_the_original_as_it_was(method: Method, problem: Problem) -> None:
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    settings = json.dumps(problem.model.config.to_dict(), default=str)
    result = unlearn(problem, method, seed=3, execution=tiny.QUIET)
    after = problem.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.dumps(problem.model.config.to_dict(), default=str) == settings
    assert all(parameter.grad is None and parameter.requires_grad for parameter in problem.model.parameters())
    assert all(parameter.requires_grad for parameter in result.model.parameters()), "none stays frozen"
    assert type(result.model) is type(problem.model)
    assert not any(module.training for module in result.model.modules())
    assert list(result.model.state_dict()) == list(before)
    assert result.model.lm_head.weight is result.model.transformer.wte.weight, "what was tied stays tied"
    assert digest_model(result.model) != digest_model(problem.model)


@by_method
def test_the_seed_decides_every_bit(method: Method, problem: Problem) -> None:
    torch.manual_seed(1)
    first = unlearn(problem, method, seed=7, execution=tiny.QUIET)
    torch.manual_seed(2)
    second = unlearn(problem, method, seed=7, execution=tiny.QUIET)
    assert first.record.result_digest == second.record.result_digest
    assert [phase.history for phase in first.record.phases] == [phase.history for phase in second.record.phases]
    assert first.record.result_digest != unlearn(problem, method, seed=8, execution=tiny.QUIET).record.result_digest


@by_method
def test_small_forward_passes_give_the_same_model(method: Method, problem: Problem) -> None:
    if isinstance(method, Retrain):
        pytest.skip("the recipe has settings of its own")
    quiet = dataclasses.replace(tiny.QUIET, micro_batch_size=2)
    whole, parts = (unlearn(problem, method, seed=1, execution=each).model for each in (tiny.QUIET, quiet))
    assert torch.allclose(tiny.flat(whole), tiny.flat(parts), atol=1e-4)


@by_method
def test_the_record_is_complete_and_holds_no_text(method: Method, problem: Problem) -> None:
    record = unlearn(problem, method, execution=tiny.QUIET).record
    text = record.model_dump_json()
    assert Record.model_validate_json(text) == record
    assert {name: entry.examples for name, entry in record.data.items()} == {"forget": 6, "retain": 18}
    assert record.phases
    assert all(phase.steps == len(phase.history) > 0 for phase in record.phases)
    assert not any(name in text for name in ("bob", "where does", "oslo"))


@by_own_method
def test_examples_that_are_tokens_already_give_the_same_model(method: Method, problem: Problem) -> None:
    tokens = {name: words.TASK.tokenized(getattr(problem, name)).dataset for name in ("forget", "retain")}
    first, second = (
        unlearn(each, method, execution=tiny.QUIET).record.result_digest
        for each in (problem, dataclasses.replace(problem, **tokens))
    )
    assert first == second


@by_own_method
def test_each_missing_need_is_named(method: Method, problem: Problem) -> None:
    for need in method.needs:
        keep = {"classes": (0,)} if need.value == "forget" else {}
        with pytest.raises(MissingNeedError, match=rf"{type(method).__name__} needs .*`{need.value}="):
            unlearn(dataclasses.replace(problem, **{**keep, need.value: None}), method, execution=tiny.QUIET)


@by_own_method
def test_another_task_is_refused(method: Method, mlp_problem: Problem) -> None:
    with pytest.raises(UnsupportedTaskError, match="works on CausalLM, not on Classification"):
        unlearn(mlp_problem, method, execution=tiny.QUIET)


@by_own_method
def test_senseless_numbers_are_refused(method: Method) -> None:
    numbers = [
        field.name for field in dataclasses.fields(method) if isinstance(getattr(method, field.name), int | float)
    ]
    assert len(numbers) >= 4
    for name in numbers:
        for value in (-1, math.nan, *([] if name in {"weight_decay", "margin", "layer"} else [0])):
            with pytest.raises(SettingError, match=rf"^{name} must .*, not {value}$"):
                dataclasses.replace(method, **{name: value})
    if hasattr(method, "retain_loss"):
        with pytest.raises(SettingError, match="retain_loss must be one of 'nll', 'kl'"):
            dataclasses.replace(method, retain_loss="mse")


def llama() -> LlamaForCausalLM:
    """Another architecture: rotary positions, grouped keys, a head of its own."""
    shape: dict[str, Any] = {"vocab_size": len(words.WORDS), "hidden_size": 32, "intermediate_size": 48}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape))


@by_method
def test_another_architecture_forgets_too(method: Method, problem: Problem) -> None:
    model = llama()
    result = unlearn(dataclasses.replace(problem, model=model), method, execution=tiny.QUIET)
    assert digest_model(result.model) != digest_model(model)


@by_own_method
def test_a_killed_run_goes_on_to_the_same_bits(method: Method, problem: Problem, tmp_path: Any) -> None:
    whole = unlearn(problem, method, execution=tiny.QUIET, checkpoint_dir=tmp_path)
    again = unlearn(problem, method, execution=tiny.QUIET, checkpoint_dir=tmp_path, resume=True)
    assert again.record.result_digest == whole.record.result_digest


@pytest.mark.parametrize("adapter", [None, LoraSettings(rank=2)], ids=["whole", "LoRA"])
def test_a_run_that_was_killed_goes_on_to_the_bits_it_would_have_reached(
    adapter: LoraSettings | None, problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = NPO(1e-3, epochs=4, batch_size=3, retain_loss="kl", adapter=adapter)
    wanted = unlearn(problem, method, execution=tiny.QUIET).record
    often, real, calls = dataclasses.replace(tiny.QUIET, checkpoint_seconds=0.0), npo_loss, []

    def killed(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("expunge.methods.npo.npo_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            unlearn(problem, method, execution=often, checkpoint_dir=tmp_path)
        assert len(calls) == 6
        unlearned = unlearn(problem, method, execution=often, checkpoint_dir=tmp_path, resume=True)
    assert len(calls) == 6 + 8 - 5, "five steps were taken before, and are not taken again"
    assert unlearned.record.result_digest == wanted.result_digest


def test_a_rate_that_diverges_is_an_error(problem: Problem) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        unlearn(problem, GradDiff(1e30, epochs=20, batch_size=4), execution=tiny.QUIET)


def test_a_refusal_needs_a_prompt(problem: Problem) -> None:
    plain = [fact["answer"] for fact in words.facts()]
    with pytest.raises(DataError, match="no prompt that a refusal could answer"):
        unlearn(dataclasses.replace(problem, forget=plain[:2], retain=plain[2:]), IdkDPO(), execution=tiny.QUIET)


def test_a_layer_that_is_not_there_is_refused(problem: Problem) -> None:
    with pytest.raises(SettingError, match="layer must be below the 2 blocks"):
        unlearn(problem, RMU(layer=2), execution=tiny.QUIET)


def test_the_table_holds_every_language_method() -> None:
    exported = [getattr(expunge.methods, name) for name in expunge.methods.__all__]
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method}
    # Those that work from a state of training have tables of their own.
    expected = {kind for kind in kinds if kind.tasks == (CausalLM,) and Need.STATE not in kind.needs}
    assert {type(method) for method in OWN.values()} == expected


def test_the_norm_may_be_left_alone(problem: Problem) -> None:
    clipped, free = (
        unlearn(problem, NPO(1e-3, epochs=1, clip_norm=norm), execution=tiny.QUIET).record for norm in (1e-3, None)
    )
    assert clipped.result_digest != free.result_digest
    assert free.settings["clip_norm"] is None
