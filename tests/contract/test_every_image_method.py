"""What holds of every method that works on images, with every family of models: a new one is a new row in METHODS."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import expunge.methods
import restoring
import tiny
from expunge import ImageToImage, Need, Problem, Record, unlearn
from expunge.errors import EncoderError, MissingNeedError, SettingError, UnsupportedTaskError
from expunge.image_models import MaskedAutoencoder
from expunge.methods import (
    Extrapolate,
    FineTune,
    GradientAscent,
    LatentRemap,
    MaxLoss,
    Method,
    NegGradPlus,
    NoisyLabel,
    RandomEncoder,
    RetainLabel,
    Retrain,
    Stage,
)
from expunge.storage import digest_model

SHORT: dict[str, Any] = {"learning_rate": 2e-3, "epochs": 1, "batch_size": 16}
OWN: dict[str, Method] = {
    "LatentRemap": LatentRemap(**SHORT),
    "LatentRemap fixed": LatentRemap(**SHORT, draws="fixed"),
    "LatentRemap latent": LatentRemap(**SHORT, target="noise latent"),
    "LatentRemap oracle": LatentRemap.preset("oracle", **SHORT, tuning_epochs=1),
    "LatentRemap neighbours": LatentRemap.preset("neighbours", **SHORT),
    "LatentRemap paper": LatentRemap.preset("paper", epochs=1, batch_size=16),
    "MaxLoss": MaxLoss(**SHORT),
    "NoisyLabel": NoisyLabel(**SHORT),
    "RetainLabel": RetainLabel(**SHORT),
    "RandomEncoder": RandomEncoder(**SHORT),
}
GENERAL: dict[str, Method] = {
    "Retrain": Retrain(),
    "FineTune": FineTune((Stage(0.01, steps=3),), batch_size=16),
    "Extrapolate": Extrapolate(**SHORT),
    "GradientAscent": GradientAscent(1e-3, epochs=2, batch_size=16),
    "NegGradPlus": NegGradPlus(epochs=1, batch_size=16),
}
METHODS = OWN | GENERAL
ENCODER_ONLY = {name: method for name, method in OWN.items() if isinstance(method, LatentRemap | RandomEncoder)}


def works_on(method: Method, family: str) -> bool:
    """A mean of pictures can be asked of models that say pixels alone."""
    return getattr(method, "target", None) != "neighbours" or family == "masked autoencoder"


def by_method_and_family(methods: dict[str, Method]) -> Any:
    pairs = [(name, family) for name in methods for family in restoring.FAMILIES if works_on(methods[name], family)]
    return pytest.mark.parametrize(
        ("method", "family"), [pytest.param(methods[name], family, id=f"{name}-{family}") for name, family in pairs]
    )


by_own_method = pytest.mark.parametrize("method", OWN.values(), ids=OWN)
by_family = pytest.mark.parametrize("family", restoring.FAMILIES)


@pytest.fixture(scope="module")
def problem() -> Callable[[str], Problem]:
    """A problem of each family, whose model was trained for a moment."""

    @cache
    def make(family: str) -> Problem:
        kind, data = restoring.FAMILIES[family], restoring.pictures(16)
        recipe = restoring.recipe(kind, epochs=2)
        return restoring.problem(recipe(data, seed=0), data, kind.task, recipe=recipe)

    return make


@by_method_and_family(METHODS)
def test_forgets_and_leaves_the_original_as_it_was(
    method: Method, family: str, problem: Callable[[str], Problem]
) -> None:
    given = problem(family)
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    result = unlearn(given, method, seed=3, execution=tiny.QUIET)
    after = given.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fixed = given.task.fixed(given.model)
    assert all(torch.equal(before[name], result.model.get_parameter(name)) for name in fixed), "what is computed stays"
    assert all(parameter.grad is None for parameter in given.model.parameters())
    for model in (given.model, result.model):
        assert all(parameter.requires_grad for name, parameter in model.named_parameters() if name not in fixed)
    assert type(result.model) is type(given.model)
    assert list(result.model.state_dict()) == list(before)
    assert not any(module.training for module in result.model.modules())
    assert digest_model(result.model) != digest_model(given.model)


@pytest.mark.parametrize("positions", ["vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"])
def test_sinusoidal_positions_are_those_of_a_fresh_model_after_training(
    positions: str, problem: Callable[[str], Problem]
) -> None:
    model, fresh = problem("masked autoencoder").model, restoring.vit_mae()
    assert torch.equal(model.get_parameter(positions), fresh.get_parameter(positions))
    assert not model.get_parameter(positions).requires_grad
    assert not torch.equal(model.vit.embeddings.cls_token, fresh.vit.embeddings.cls_token)


@by_method_and_family(ENCODER_ONLY)
def test_every_decoder_tensor_is_left_to_the_last_bit(
    method: Method, family: str, problem: Callable[[str], Problem]
) -> None:
    given = problem(family)
    result = unlearn(given, method, seed=3, execution=tiny.QUIET)
    encoder = set(given.task.family.parts(given.model).encoder)
    before, after = given.model.state_dict(), result.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name not in encoder)
    moved = [name for name in encoder if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(encoder) - 1
    assert len(before) > len(encoder) + 5


def test_a_part_of_the_encoder_is_all_that_is_trained(problem: Callable[[str], Problem]) -> None:
    given = problem("masked autoencoder")
    narrow = dataclasses.replace(given.task.family, encoder=("vit.layers.1",))
    result = unlearn(
        dataclasses.replace(given, task=dataclasses.replace(given.task, family=narrow)), OWN["LatentRemap"],
        execution=tiny.QUIET,
    )  # fmt: skip
    before, after = given.model.state_dict(), result.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("vit.layers.1.") for name in moved)
    wide = dataclasses.replace(given.task.family, encoder=("vit", "decoder.decoder_embed"))
    task = dataclasses.replace(given.task, family=wide)
    with pytest.raises(EncoderError, match="covers 2 parameters that the decoder uses"):
        unlearn(dataclasses.replace(given, task=task), OWN["LatentRemap"], execution=tiny.QUIET)


@pytest.mark.parametrize("paths", [("vit.layers.9",), ("vit", "decoder.decoder_embed")])
def test_an_encoder_that_cannot_be_is_refused_before_data_are_read(paths: tuple[str, ...]) -> None:
    class Unread:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            pytest.fail("read")

    task = dataclasses.replace(restoring.MAE, family=MaskedAutoencoder(encoder=paths))
    given = Problem(restoring.vit_mae(), task, Unread(), Unread())
    for method in OWN.values():
        with pytest.raises(EncoderError):
            unlearn(given, method, execution=tiny.QUIET)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *((method, "masked autoencoder") for method in OWN.values()),
        *((OWN["LatentRemap"], family) for family in restoring.FAMILIES),
    ],
)
def test_the_seed_decides_every_bit(method: Method, family: str, problem: Callable[[str], Problem]) -> None:
    torch.manual_seed(1)
    first = unlearn(problem(family), method, seed=7, execution=tiny.QUIET).record
    torch.manual_seed(2)
    second = unlearn(problem(family), method, seed=7, execution=tiny.QUIET).record
    assert first.result_digest == second.result_digest
    assert [phase.history for phase in first.phases] == [phase.history for phase in second.phases]
    assert first.result_digest != unlearn(problem(family), method, seed=8, execution=tiny.QUIET).record.result_digest


@by_own_method
def test_a_finished_run_is_found_again(method: Method, problem: Callable[[str], Problem], tmp_path: Any) -> None:
    given = problem("masked autoencoder")
    whole = unlearn(given, method, execution=tiny.QUIET, checkpoint_dir=tmp_path).record
    again = unlearn(given, method, execution=tiny.QUIET, checkpoint_dir=tmp_path, resume=True).record
    assert again.result_digest == whole.result_digest
    assert [phase.measured for phase in again.phases] == [phase.measured for phase in whole.phases]


@by_own_method
def test_a_killed_run_goes_on_to_the_same_bits(
    method: Method, problem: Callable[[str], Problem], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem("masked autoencoder")
    wanted = unlearn(given, method, execution=tiny.QUIET).record.result_digest
    often, step, calls = dataclasses.replace(tiny.QUIET, checkpoint_seconds=0.0), torch.optim.AdamW.step, []

    def killed(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            unlearn(given, method, execution=often, checkpoint_dir=tmp_path)
    result = unlearn(given, method, execution=often, checkpoint_dir=tmp_path, resume=True)
    assert result.record.result_digest == wanted


@by_family
@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"micro_batch_size": 5}, {"channels_last": True}], ids=str)
def test_it_may_be_computed_otherwise(changes: dict[str, Any], family: str, problem: Callable[[str], Problem]) -> None:
    given = problem(family)
    plainly = unlearn(given, OWN["LatentRemap"], execution=tiny.QUIET)
    AcceleratorState._reset_state(reset_partial_state=True)
    otherwise = unlearn(given, OWN["LatentRemap"], execution=dataclasses.replace(tiny.QUIET, **changes))
    if "micro_batch_size" not in changes:  # whose noise is matched to smaller batches
        first, second = (result.record.phases[0].history for result in (plainly, otherwise))
        assert second == pytest.approx(first, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in otherwise.model.parameters())


@by_own_method
def test_the_record_is_complete(method: Method, problem: Callable[[str], Problem]) -> None:
    record = unlearn(problem("masked autoencoder"), method, execution=tiny.QUIET).record
    assert Record.model_validate_json(record.model_dump_json()) == record
    assert {name: entry.examples for name, entry in record.data.items()} == {"forget": 16, "retain": 32}
    assert record.phases
    assert all(phase.steps == len(phase.history) > 0 for phase in record.phases)
    assert record.settings["forget_weight"] == method.forget_weight
    assert json.dumps(record.settings)


@by_own_method
def test_each_missing_need_is_named(method: Method, problem: Callable[[str], Problem]) -> None:
    given = problem("masked autoencoder")
    with pytest.raises(MissingNeedError, match=r"needs .*`retain="):
        unlearn(dataclasses.replace(given, retain=None), method, execution=tiny.QUIET)
    with pytest.raises(MissingNeedError, match=r"needs .*`forget="):
        unlearn(dataclasses.replace(given, forget=None), method, execution=tiny.QUIET)
    proxy = dataclasses.replace(method, held="surrogate")
    with pytest.raises(MissingNeedError, match=r"needs .*`surrogate="):
        unlearn(given, proxy, execution=tiny.QUIET)
    assert method.needs == {Need.FORGET}


@by_own_method
def test_a_proxy_or_nothing_may_stand_for_the_retain_set(method: Method, problem: Callable[[str], Problem]) -> None:
    given = problem("masked autoencoder")
    bare = dataclasses.replace(given, retain=None, surrogate=restoring.pictures(16, seed=2))
    held = unlearn(bare, dataclasses.replace(method, held="surrogate"), execution=tiny.QUIET)
    assert held.record.data["surrogate"].examples == 48
    if isinstance(method, RetainLabel) or getattr(method, "target", "") in ("extrapolation", "neighbours"):
        with pytest.raises(SettingError, match="held"):
            dataclasses.replace(method, held="none")
    else:
        free = unlearn(bare, dataclasses.replace(method, held="none"), execution=tiny.QUIET)
        assert free.record.result_digest != held.record.result_digest


@by_own_method
def test_another_task_is_refused(method: Method, mlp_problem: Problem) -> None:
    with pytest.raises(UnsupportedTaskError, match="works on ImageToImage, not on Classification"):
        unlearn(mlp_problem, method, execution=tiny.QUIET)


@by_own_method
def test_senseless_settings_are_refused(method: Method) -> None:
    numbers = [
        field.name
        for field in dataclasses.fields(method)
        if isinstance(getattr(method, field.name), int | float) or field.name == "clip_norm"
    ]
    assert len(numbers) >= 6
    for name in numbers:
        for value in (-1, math.nan, *([] if name == "weight_decay" else [0])):
            with pytest.raises(SettingError, match=rf"^{name} must .*, not {value}$"):
                dataclasses.replace(method, **{name: value})
    for name in ("held", "schedule", "algorithm", *(("target", "draws") if isinstance(method, LatentRemap) else ())):
        with pytest.raises(SettingError, match=f"{name} must be one of"):
            dataclasses.replace(method, **{name: "whatever"})


def test_the_table_holds_every_image_method() -> None:
    exported = [getattr(expunge.methods, name) for name in expunge.methods.__all__]
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Method) and kind is not Method}
    assert {type(method) for method in OWN.values()} == {kind for kind in kinds if kind.tasks == (ImageToImage,)}
