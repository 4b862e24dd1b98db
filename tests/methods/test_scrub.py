"""SCRUB against its formula in plain torch, and what rewinding chooses."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from expunge import SCRUB, Problem, unlearn
from expunge.errors import MissingNeedError, SettingError
from expunge.storage import digest_model
from expunge.training import Algorithm, Execution

WHOLE = 1000


def divergence(model: nn.Module, original: nn.Module, inputs: Tensor, temperature: float) -> Tensor:
    """T² · sum softmax(t/T) (log softmax(t/T) - log softmax(s/T)) / examples, written out."""
    with torch.no_grad():
        teacher = (original(inputs) / temperature).softmax(1)
    student = (model(inputs) / temperature).softmax(1)
    return temperature**2 * (teacher * (teacher.log() - student.log())).sum() / len(inputs)


def by_hand(problem: Problem, method: SCRUB, kind: type[torch.optim.Optimizer], **settings: Any) -> nn.Module:
    """Each pass is one step on the whole set; one optimiser for all."""
    original, model = problem.model.eval(), copy.deepcopy(problem.model).train()
    stepper = kind(model.parameters(), lr=method.learning_rate, weight_decay=method.weight_decay, **settings)
    forgotten, _ = tiny.tensors_of(problem.forget)
    kept, labels = tiny.tensors_of(problem.retain)
    for epoch in range(1, method.epochs + 1):
        stepper.param_groups[0]["lr"] = method.learning_rate * 0.1 ** sum(epoch > last for last in method.decay_epochs)
        if epoch <= method.max_epochs:
            stepper.zero_grad()
            (-divergence(model, original, forgotten, method.temperature)).backward()
            stepper.step()
        stepper.zero_grad()
        error = F.cross_entropy(model(kept), labels)
        distance = divergence(model, original, kept, method.temperature)
        (method.retain_weight * error + method.distillation_weight * distance).backward()
        stepper.step()
    return model


WHOLE_SETS: dict[str, Any] = {"batch_size": WHOLE, "forget_batch_size": WHOLE}
CASES: list[tuple[SCRUB, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (SCRUB(0.05, **WHOLE_SETS), torch.optim.SGD, {"momentum": 0.9}),
    (SCRUB.preset("membership", learning_rate=0.05, **WHOLE_SETS), torch.optim.SGD, {"momentum": 0.9}),
    (SCRUB.preset("small-scale", learning_rate=0.01, **WHOLE_SETS), torch.optim.Adam, {}),
]


@pytest.mark.parametrize(("method", "kind", "settings"), CASES, ids=["large-scale", "membership", "small-scale"])
def test_it_follows_the_formula(
    method: SCRUB, kind: type[torch.optim.Optimizer], settings: dict[str, Any], mlp_problem: Problem
) -> None:
    expected = by_hand(mlp_problem, method, kind, **settings)
    result = unlearn(mlp_problem, method, execution=tiny.QUIET)
    assert (tiny.flat(expected) - tiny.flat(mlp_problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result.model), tiny.flat(expected), atol=1e-5)
    passes = [phase.steps for phase in result.record.phases]
    assert passes == [2] * method.max_epochs + [1] * (method.epochs - method.max_epochs)


def test_an_optimiser_that_forgets_between_turns_would_show(mlp_problem: Problem) -> None:
    method, kind, settings = CASES[0]
    once = by_hand(mlp_problem, dataclasses.replace(method, epochs=1, max_epochs=1), kind, **settings)
    afterwards = dataclasses.replace(mlp_problem, model=once)
    again = by_hand(afterwards, dataclasses.replace(method, epochs=1, max_epochs=1), kind, **settings)
    together = by_hand(mlp_problem, dataclasses.replace(method, epochs=2, max_epochs=2), kind, **settings)
    assert not torch.allclose(tiny.flat(again), tiny.flat(together), atol=1e-3)


def rewinding(problem: Problem, holdout: Any) -> tuple[Problem, SCRUB]:
    method = SCRUB(0.05, epochs=5, max_epochs=5, temperature=1.0, batch_size=16, forget_batch_size=8, rewind=True)
    return dataclasses.replace(problem, holdout=holdout), method


def test_rewinding_returns_the_epoch_nearest_to_the_reference() -> None:
    shape, data = tiny.SHAPES["mlp"], tiny.vectors(spread=1.2)
    holdout = tiny.vectors(per_class=20, seed=5, spread=1.2)
    labels = holdout.tensors[1]
    parts = tiny.split(data, indices=range(0, 80, 4))  # twenty of class 0, and held-out examples of all four classes
    original = Problem(tiny.recipe(shape)(data, seed=0), tiny.TASK, parts.forget, parts.retain)
    problem, method = rewinding(original, holdout)
    method = dataclasses.replace(method, learning_rate=0.02, epochs=4, max_epochs=4)
    found: list[tuple[float, float, int]] = []
    for seed in range(3):
        result = unlearn(problem, method, seed=seed, execution=tiny.QUIET)
        errors = [phase.measured["forget_error"] for phase in result.record.phases]
        last = result.record.phases[-1].measured
        chosen = int(last["rewound_to_epoch"])
        stopped = dataclasses.replace(method, rewind=False)
        whole = unlearn(problem, stopped, seed=seed, execution=tiny.QUIET).model
        own = [index for index in range(len(labels)) if labels[index] == 0]
        reference = 1 - tiny.accuracy(whole, torch.utils.data.Subset(holdout, own))
        assert last["reference_error"] == pytest.approx(reference), "held-out examples of the forgotten class alone"
        gaps = [abs(error - reference) for error in errors]
        assert gaps[chosen - 1] == min(gaps)
        assert 1 - tiny.accuracy(result.model, problem.forget) == pytest.approx(errors[chosen - 1])
        short = dataclasses.replace(stopped, epochs=chosen, max_epochs=chosen)
        assert digest_model(result.model) == digest_model(
            unlearn(problem, short, seed=seed, execution=tiny.QUIET).model
        )
        found.append((reference, errors[-1], chosen))
    assert any(chosen < method.epochs for _, _, chosen in found), "or this shows nothing"


def test_rewinding_weighs_held_out_classes_as_the_forget_set_does(mlp_problem: Problem) -> None:
    data = tiny.vectors(per_class=30)
    parts = tiny.split(data, indices=[*range(0, 40, 4), 1, 5])  # ten of class 0 and two of class 1
    holdout = tiny.vectors(per_class=7, seed=9, spread=1.5)
    problem = Problem(mlp_problem.model, tiny.TASK, parts.forget, parts.retain, holdout)
    method = SCRUB(0.01, epochs=1, max_epochs=1, rewind=True)
    result = unlearn(problem, method, execution=tiny.QUIET)
    wrong = [
        1 - tiny.accuracy(result.model, torch.utils.data.Subset(holdout, range(label, len(holdout), 4)))
        for label in range(2)
    ]
    expected = (10 * wrong[0] + 2 * wrong[1]) / 12
    assert result.record.phases[-1].measured["reference_error"] == pytest.approx(expected)


def test_rewinding_needs_held_out_examples_of_the_same_classes(mlp_problem: Problem) -> None:
    _, method = rewinding(mlp_problem, None)
    with pytest.raises(MissingNeedError, match=r"SCRUB\(rewind=True\) needs data of the same kind.*`holdout="):
        unlearn(mlp_problem, method, execution=tiny.QUIET)
    others = torch.utils.data.Subset(tiny.vectors(seed=5), [1, 2, 3])
    problem, method = rewinding(mlp_problem, others)
    with pytest.raises(MissingNeedError, match="the holdout has none of class 0"):
        unlearn(problem, method, execution=tiny.QUIET)


class _Killed(Exception):
    """Stands for a kill."""


def test_a_rewinding_run_resumes_to_the_same_bits(
    mlp_problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, method = rewinding(mlp_problem, tiny.vectors(per_class=10, seed=5))
    often = Execution(device="cpu", progress=False, checkpoint_seconds=0)
    expected = unlearn(problem, method, execution=often).record
    losses, calls = type(problem.task).outputs, 0

    def dies(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise _Killed
        return losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(problem.task), "outputs", dies)
        with pytest.raises(_Killed):
            unlearn(problem, method, execution=often, checkpoint_dir=tmp_path)
    assert (tmp_path / "02-epoch-3.safetensors").exists()
    resumed = unlearn(problem, method, execution=often, checkpoint_dir=tmp_path, resume=True).record
    assert resumed.result_digest == expected.result_digest
    assert [phase.measured for phase in resumed.phases] == [phase.measured for phase in expected.phases]


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(SettingError, match=r"max_epochs must be at most epochs \(3\), not 4"):
        SCRUB(max_epochs=4)
    for epochs in (5, ("a",), (2.5,)):
        with pytest.raises(SettingError, match="decay_epochs must be a tuple of epochs, such as"):
            SCRUB(decay_epochs=epochs)
    with pytest.raises(SettingError, match="algorithm must be one of"):
        SCRUB(algorithm="sgd")
    assert SCRUB.preset("small-scale").algorithm is Algorithm.ADAM
