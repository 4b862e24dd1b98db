"""Noisy fine-tuning: clipping, noise, and what it guarantees."""

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from expunge import Execution, NoisyFineTune, Problem, Run, Tier, Unlearned, split, unlearn
from expunge.errors import ModelError, SettingError
from expunge.methods import noisy_fine_tune
from expunge.privacy import iteration_shift, renyi_ratio
from expunge.storage import digest_model, read_tensors

DATA = tiny.vectors(spread=0.5)
METHOD = NoisyFineTune(
    epsilon=1.0, steps=20, learning_rate=0.05, weight_decay=1.0, batch_size=32, repair_learning_rate=0.1
)


def problem(model: nn.Module | None = None) -> Problem:
    torch.manual_seed(0)
    parts = split(DATA, indices=range(4))
    return Problem(model or nn.Linear(tiny.FEATURES, tiny.CLASSES), tiny.TASK, parts.forget, parts.retain)


def forget(method: NoisyFineTune, given: Problem | None = None, seed: int = 0) -> Unlearned:
    return unlearn(given or problem(), method, seed=seed, execution=tiny.QUIET)


def test_the_certificate_and_the_noise_behind_it() -> None:
    result = forget(METHOD)
    found = result.record.certificate
    assert found is not None
    assert found.tier is Tier.CERTIFIED
    assert (found.epsilon, found.delta) == (1.0, 1 / 120**2)
    shift = iteration_shift(20, model_norm=1, gradient_norm=1, learning_rate=0.05, weight_decay=1)
    assert found.sigma == pytest.approx(shift / renyi_ratio(1, 1 / 120**2))
    assert {constant.name: constant.value for constant in found.constants} == {
        "C0": 1.0, "C1": 1.0, "η": 0.05, "decay": 1.0, "T": 20,
    }  # fmt: skip
    assert [phase.name for phase in result.record.phases] == ["noise", "repair"]
    assert result.record.phases[0].steps == 20
    assert any("drawn by PCG64 under 128 secret bits, not by a cipher" in each for each in found.not_covered)


def test_no_loss_from_before_the_last_noise_is_recorded() -> None:
    noise, repair = forget(METHOD).record.phases
    assert noise.history == [], "its losses are exact figures of the original and of steps that are not released"
    assert len(repair.history) == repair.steps > 0


def test_no_loss_from_before_the_last_noise_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: dict[str, list[str]] = {}

    @contextmanager
    def listening(title: str, *_: Any, **__: Any) -> Iterator[Any]:
        heard = notes.setdefault(title, [])
        yield SimpleNamespace(advance=lambda amount=1, note="": heard.append(note))

    monkeypatch.setattr(sys.modules[Run.__module__], "bar", listening)
    forget(METHOD)
    assert notes["noise"]
    assert set(notes["noise"]) == {""}
    assert all(note.startswith("loss ") for note in notes["repair"])


def test_no_loss_from_before_the_last_noise_is_in_a_checkpoint(tmp_path: Path) -> None:
    often = dataclasses.replace(tiny.QUIET, checkpoint_seconds=0)
    seen: list[Any] = []

    class Copying(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            seen.extend(read_tensors(path)[1]["record"] for path in tmp_path.glob("*.safetensors"))
            return super().forward(rows)

    torch.manual_seed(0)
    model = Copying(tiny.FEATURES, tiny.CLASSES)
    unlearn(problem(model), METHOD, execution=often, checkpoint_dir=tmp_path)
    noise = [record for record in seen if record["name"] == "noise"]
    assert {record["steps"] for record in noise} == set(range(1, 21))
    assert all(record["history"] == [] for record in noise)


def test_every_step_moves_as_the_accountant_believes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipped start, clipped gradients, decay, and noise of the stated scale, drawn anew at each step."""
    places, noises, disturb = [], [], noisy_fine_tune._disturb

    def watched(model: nn.Module, sigma: float, generator: Any) -> None:
        before = tiny.flat(model).clone()
        disturb(model, sigma, generator)
        places.append((before, tiny.flat(model).clone()))
        noises.append((tiny.flat(model) - before) / sigma)

    monkeypatch.setattr(noisy_fine_tune, "_disturb", watched)
    large = nn.Linear(tiny.FEATURES, tiny.CLASSES)
    nn.init.normal_(large.weight, std=50)
    forget(METHOD, problem(large))
    start = tiny.flat(large) / tiny.flat(large).norm()
    for (moved, _), origin in zip(places, [start, *(after for _, after in places)], strict=False):
        pull = (moved - (1 - 0.05) * origin) / 0.05
        assert float(pull.norm()) <= 1 + 1e-3, "a gradient of norm 1 at most, besides the decay"
    drawn = torch.stack(noises)
    assert drawn.shape == (20, tiny.FEATURES * tiny.CLASSES + tiny.CLASSES)
    assert 0.9 < float(drawn.std()) < 1.1, "1,040 draws"
    alike = torch.corrcoef(drawn) - torch.eye(20)
    assert float(alike.abs().max()) < 0.75, "190 pairs of 52: no step repeats another"


def test_repair_brings_back_what_noise_took() -> None:
    method = dataclasses.replace(METHOD, repair_epochs=40, noise="seeded")
    accuracy = [tiny.accuracy(forget(method, seed=seed).model, DATA) for seed in range(5)]
    assert min(accuracy) > 0.8


def test_noise_is_drawn_anew_unless_it_is_seeded() -> None:
    first, second = forget(METHOD), forget(METHOD)
    assert digest_model(first.model) != digest_model(second.model)
    seeded = dataclasses.replace(METHOD, noise="seeded")
    one, again, other = forget(seeded), forget(seeded), forget(seeded, seed=1)
    assert digest_model(one.model) == digest_model(again.model) != digest_model(other.model)
    assert one.record.guarantee is Tier.CONDITIONAL


def test_steps_are_as_many_as_the_way_takes() -> None:
    method = NoisyFineTune(model_norm=2, gradient_norm=4, learning_rate=0.01, repair_epochs=1)
    assert forget(method).record.phases[0].steps == 50


def test_statistics_that_nothing_bounds_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(tiny.FEATURES), nn.Linear(tiny.FEATURES, tiny.CLASSES))
    with pytest.raises(ModelError, match=r"buffers such as 0\.running_mean.* GroupNorm or LayerNorm"):
        forget(METHOD, problem(model))


def test_a_loss_scale_with_a_memory_is_refused() -> None:
    """On a CPU accelerate offers no fp16, so the run is put together by hand."""
    execution = Execution(device="cpu", progress=False)
    object.__setattr__(execution, "precision", "fp16")
    from expunge.training import Run

    run = object.__new__(Run)
    run.execution, run.seed = execution, 0
    run.copy = lambda model: model  # type: ignore[method-assign]
    with pytest.raises(SettingError, match="cannot run in fp16"):
        METHOD.apply(problem(), run)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": 100.0}, "above epsilon_limit"),
        ({"delta": 1.0}, "delta must be below 1"),
        ({"model_norm": 0.0}, "model_norm must be above 0"),
        ({"gradient_norm": -1.0}, "gradient_norm must be above 0"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"weight_decay": 200.0}, "learning_rate times weight_decay must be below 1"),
        ({"noise": "none"}, "noise must be one of"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        NoisyFineTune(**settings)


def test_a_delta_of_one_in_n_is_refused() -> None:
    with pytest.raises(SettingError, match="must be below 1/n"):
        forget(dataclasses.replace(METHOD, delta=0.01))
