"""Bad Teacher: what each set is taught, and by whom."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from expunge import BadTeacher, Problem, Run, unlearn
from expunge.errors import SettingError
from expunge.methods._distillation import logits_of, softened_divergence
from expunge.methods._initialise import scrambled

WHOLE = 1000


def test_it_follows_the_formula(mlp_problem: Problem) -> None:
    method = BadTeacher(temperature=2.0, retain_share=1.0, learning_rate=0.01, epochs=4, batch_size=WHOLE)
    good, model = mlp_problem.model.eval(), copy.deepcopy(mlp_problem.model).train()
    bad = scrambled(Run(tiny.TASK, 5, tiny.QUIET), mlp_problem.model).eval()
    sets = [tiny.tensors_of(each)[0] for each in (mlp_problem.forget, mlp_problem.retain)]
    with torch.no_grad():
        targets = torch.cat([(bad(sets[0]) / 2).softmax(1), (good(sets[1]) / 2).softmax(1)])
    stepper = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(4):
        stepper.zero_grad()
        predictions = (model(torch.cat(sets)) / 2).log_softmax(1)
        (4 * (targets * (targets.log() - predictions)).sum(1).mean()).backward()
        stepper.step()
    result = unlearn(mlp_problem, method, seed=5, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(mlp_problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-4)


def test_each_example_keeps_its_own_teacher_through_shuffled_batches(mlp_problem: Problem) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    @dataclasses.dataclass(frozen=True)
    class Spy(type(tiny.TASK)):
        def outputs(self, model: nn.Module, batch: Any) -> torch.Tensor:
            found = super().outputs(model, batch)
            if model.training:
                seen.append((batch["inputs"], found.detach()))
            return found

    # with a rate of next to nothing the model stays the original, so its divergence from the good teacher is nought
    problem = dataclasses.replace(mlp_problem, task=Spy(tiny.CLASSES))
    method = BadTeacher(retain_share=1.0, learning_rate=1e-12, batch_size=10)
    history = unlearn(problem, method, seed=1, execution=tiny.QUIET).record.phases[0].history
    forgotten = {tuple(each) for each in tiny.tensors_of(mlp_problem.forget)[0].tolist()}
    bad = scrambled(Run(tiny.TASK, 1, tiny.QUIET), mlp_problem.model)
    for loss, (inputs, said) in zip(history, seen, strict=True):
        with torch.no_grad():
            taught = softened_divergence(said, bad.eval()(inputs))
        chosen = torch.tensor([tuple(each) in forgotten for each in inputs.tolist()])
        assert loss == pytest.approx(float(taught[chosen].sum()) / len(inputs), abs=1e-5)
    assert max(history) > 0.1


@pytest.mark.parametrize("shape", ["mlp", "ResNet9", "ViT"])
def test_the_bad_teacher_knows_nothing(shape: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(shape)
    task = tiny.TASK
    gains: list[float] = []
    for seed in range(6):
        run = Run(task, seed, tiny.QUIET)
        stranger = scrambled(run, problem.model)
        for (name, before), (_, after) in zip(
            problem.model.named_parameters(), stranger.named_parameters(), strict=True
        ):
            if before.ndim > 1:
                assert not torch.equal(before, after), name
        labels = task.labels_of(problem.retain)
        gains.append(
            float((logits_of(run, stranger, task, problem.retain).argmax(1) == labels).double().mean()) - 1 / 3
        )
        assert torch.equal(tiny.flat(scrambled(run, problem.model)), tiny.flat(stranger))
    low, high = tiny.interval(gains)
    assert low < 0.1, gains
    assert high < 0.6, gains


def test_a_part_of_the_retain_set_is_used(mlp_problem: Problem) -> None:
    record = unlearn(mlp_problem, BadTeacher(retain_share=0.3), execution=tiny.QUIET).record
    assert record.phases[0].examples == 30 + 27
    with pytest.raises(SettingError, match=r"retain_share must be at most 1, not 1.5"):
        BadTeacher(retain_share=1.5)
