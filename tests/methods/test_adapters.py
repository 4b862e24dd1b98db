"""LoRA: only the adapter is trained, and what comes out is a plain model."""

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch

import tiny
import words
from expunge import unlearn
from expunge.errors import AdapterError, SettingError
from expunge.methods import NPO, RMU, UNDIAL, GradDiff, LoraSettings, Method, TaskNegation
from expunge.problem import Problem

LORA = LoraSettings(rank=4, alpha=8)
METHODS: dict[str, Method] = {
    "GradDiff": GradDiff(5e-3, epochs=3, batch_size=6, adapter=LORA, retain_loss="kl"),
    "NPO": NPO(5e-3, epochs=3, batch_size=6, adapter=LORA),
    "RMU": RMU(5e-3, epochs=3, batch_size=6, adapter=LORA, layer=1, trained_layers=2),
    "TaskNegation": TaskNegation(5e-3, epochs=3, batch_size=6, adapter=LORA),
    "UNDIAL": UNDIAL(5e-3, epochs=3, batch_size=6, adapter=LORA),
}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return words.problem(words.recipe(epochs=4)(words.facts(), seed=0))


@pytest.mark.parametrize("name", METHODS)
def test_the_result_is_a_plain_model_changed_by_a_low_rank(name: str, problem: Problem) -> None:
    model = unlearn(problem, METHODS[name], execution=tiny.QUIET).model
    assert type(model) is type(problem.model)
    assert [type(module) for module in model.modules()] == [type(module) for module in problem.model.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    for ours, theirs in zip(model.modules(), problem.model.modules(), strict=True):
        left = vars(ours).keys() - vars(theirs).keys()
        assert left <= {"_output_capturing_hooks_installed"}, "peft leaves nothing behind"
    before, after = problem.model.state_dict(), model.state_dict()
    assert list(before) == list(after)
    changed = {path for path in after if not torch.equal(before[path], after[path])}
    assert changed
    assert all(path.rpartition(".")[2] == "weight" and ".h." in path for path in changed)
    assert not any("ln" in path or "wte" in path for path in changed)
    for path in changed:
        assert int(torch.linalg.matrix_rank((after[path] - before[path]).double(), rtol=1e-4)) <= LORA.rank


def test_an_adapter_learns_under_gradient_checkpointing(problem: Problem) -> None:
    checkpointed = copy.deepcopy(problem.model)
    checkpointed.activation_checkpointing_enable()
    method = NPO(5e-3, epochs=2, batch_size=6, adapter=LORA)
    plain, saving = (
        unlearn(dataclasses.replace(problem, model=model), method, execution=tiny.QUIET).model
        for model in (problem.model, checkpointed)
    )
    assert torch.allclose(tiny.flat(plain), tiny.flat(saving), atol=1e-5)
    assert len(saving.transformer.wte._forward_hooks) == len(checkpointed.transformer.wte._forward_hooks)


def test_targets_are_the_layers_that_change(problem: Problem) -> None:
    method = NPO(5e-3, epochs=2, batch_size=6, adapter=LoraSettings(targets=("c_attn",)))
    after = unlearn(problem, method, execution=tiny.QUIET).model.state_dict()
    changed = {path for path, value in problem.model.state_dict().items() if not torch.equal(value, after[path])}
    assert changed == {f"transformer.h.{block}.attn.c_attn.weight" for block in range(2)}


def test_the_reference_is_the_adapter_switched_off(problem: Problem) -> None:
    """The first step of both, from cached predictions, sees a divergence of 0: an adapter begins as nothing."""
    adapter, whole = (
        unlearn(
            problem,
            GradDiff(1e-4, epochs=1, batch_size=100, retain_loss="kl", retain_weight=100, adapter=lora),
            execution=tiny.QUIET,
        ).record.phases[0].history[0]
        for lora in (LORA, None)
    )  # fmt: skip
    assert adapter == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("name", ["q_proj", "lm_head"])
def test_an_adapter_that_fits_nowhere_is_refused(name: str, problem: Problem) -> None:
    """With names that can be taken instead."""
    method = NPO(epochs=1, adapter=LoraSettings(targets=(name,)))
    message = rf"no linear layer named {name} besides its head, .*; the others end in (.*): name those"
    with pytest.raises(AdapterError, match=message) as refused:
        unlearn(problem, method, execution=tiny.QUIET)
    found = re.search(message, str(refused.value))
    assert found is not None
    offered = tuple(found[1].split(", "))
    assert offered == ("c_attn", "c_fc", "c_proj")
    unlearn(problem, NPO(epochs=1, batch_size=6, adapter=LoraSettings(targets=offered)), execution=tiny.QUIET)


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("alpha", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=name):
        dataclasses.replace(LORA, **{name: value})


def test_the_seed_decides_every_bit_of_an_adapter(problem: Problem) -> None:
    first, second, other = (
        tiny.flat(unlearn(problem, METHODS["NPO"], seed=seed, execution=tiny.QUIET).model) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
