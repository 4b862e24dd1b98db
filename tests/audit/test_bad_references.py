"""Audits whose recipe or cache is at fault: refused by name, or said in the evidence, never a silent number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from expunge import AuditSettings, FleetSettings, Problem, Relearning, audit, split, unlearn
from expunge.audit import Evidence
from expunge.errors import ReferenceModelError
from expunge.methods import FineTune, Stage
from expunge.networks import mlp

SECRET = "row 17 belongs to Jane"
SETTINGS = AuditSettings(Relearning(forget_examples=5, retain_examples=20, steps=(0, 2)))


def network() -> nn.Module:
    return mlp(12, 4, (8,))


def sound(dataset: Any, seed: int) -> nn.Module:
    """A model that depends on its seed and on its data."""
    torch.manual_seed(seed)
    model = network()
    inputs = torch.stack([dataset[index][0] for index in range(len(dataset))])
    with torch.no_grad():
        model[0].bias.add_(inputs.mean())
    return model


def without_seed(dataset: Any, seed: int) -> nn.Module:
    return sound(dataset, 0)


def without_data(dataset: Any, seed: int) -> nn.Module:
    return sound(tiny.vectors(), seed)


def audited(recipe: Callable[..., nn.Module], fleet: FleetSettings, count: int = 3) -> Evidence:
    parts = split(tiny.vectors(), classes=[0])
    problem = Problem(sound(tiny.vectors(), 0), tiny.TASK, parts.forget, parts.retain, classes=(0,), recipe=recipe)
    result = unlearn(problem, FineTune((Stage(1e-3, steps=1),)), execution=tiny.QUIET)
    return audit(result, oracles=count, settings=SETTINGS, execution=tiny.QUIET, fleet=fleet)


@pytest.mark.parametrize(("recipe", "ignored"), [(without_seed, "its seed"), (without_data, "its data")])
def test_a_recipe_that_ignores_what_it_is_given_is_refused(
    tmp_path: Path, recipe: Callable[..., nn.Module], ignored: str
) -> None:
    for _ in range(2):  # with models in the cache as without
        with pytest.raises(ReferenceModelError, match=f"ignores {ignored}"):
            audited(recipe, FleetSettings(cache=tmp_path))


def test_a_recipe_that_throws_midway_loses_no_model_and_quotes_no_data(tmp_path: Path) -> None:
    calls: list[int] = []

    def fragile(dataset: Any, seed: int) -> nn.Module:
        calls.append(seed)
        if len(calls) == 3:
            raise ValueError(SECRET)
        return sound(dataset, seed)

    settings = FleetSettings(cache=tmp_path)
    with pytest.raises(ReferenceModelError, match="oracle 3 with ValueError") as caught:
        audited(fragile, settings)
    assert SECRET not in str(caught.value)
    assert len(list((tmp_path / "models").iterdir())) == 2

    calls.clear()  # what the recipe closes over is as it was, so that it is known again
    audited(fragile, settings)
    assert len(calls) == 2, "the third oracle, and the model that shows whether the recipe heeds its data"


def test_what_was_noted_of_training_is_in_the_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "file" / "Jane"))

    def uncertain(dataset: Any, seed: int) -> nn.Module:
        assert generator.device.type == "cpu"
        return sound(dataset, seed)

    generator = torch.Generator()
    unnamed, nowhere = (audited(recipe, FleetSettings()).notes for recipe in (uncertain, sound))

    assert any("oracles are not cached" in note and "Generator" in note for note in unnamed)
    (note,) = (note for note in nowhere if "not cached" in note)
    assert "cannot write" in note
    assert "Jane" not in note, "evidence may be shared, and a path tells whose it is"


def test_what_hinders_the_check_of_the_data_is_in_the_evidence() -> None:
    def particular(dataset: Any, seed: int) -> nn.Module:
        if len(dataset) < 90:
            raise ValueError(SECRET)
        return sound(dataset, seed)

    notes = audited(particular, FleetSettings(cache=False)).notes

    assert any(note.startswith("whether the recipe heeds its data is not known") for note in notes)
    assert SECRET not in " ".join(notes)


def test_weights_that_are_not_numbers_are_named() -> None:
    def broken(dataset: Any, seed: int) -> nn.Module:
        model = sound(dataset, seed)
        with torch.no_grad():
            model[0].weight[0, 0] = float("nan")
        return model

    with pytest.raises(ReferenceModelError, match="made oracle 1 NaN"):
        audited(broken, FleetSettings(cache=False))
