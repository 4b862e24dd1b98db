"""What holds of every method: a new method is a new row in METHODS."""

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import expunge.methods
import tiny
from expunge import CausalLM, ImageToImage, Need, Problem, Record, Run, Stage, Task, Tier, unlearn
from expunge.errors import MissingNeedError, ModelChangedError, SettingError, UnsupportedTaskError
from expunge.methods import (
    CFK,
    CT,
    EMMN,
    EUK,
    LFSSD,
    MSG,
    SCRUB,
    SSD,
    UNSIR,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    Extrapolate,
    FineTune,
    FisherForgetting,
    GradientAscent,
    JustInTime,
    L1Sparse,
    Maturity,
    Method,
    NegGradPlus,
    NewtonRemoval,
    NoiseAndDistil,
    NoisyFineTune,
    RandomLabel,
    Retrain,
    SalUn,
    SelectiveReset,
)
from expunge.storage import digest_model
from expunge.training import Algorithm, Optimizer, Term

METHODS: dict[str, Method] = {
    "Retrain": Retrain(),
    "Extrapolate": Extrapolate(learning_rate=0.003, epochs=2, batch_size=16),
    "FineTune": FineTune((Stage(0.01), Stage(0.005, steps=2)), batch_size=32, retain_per_class=15),
    "GradientAscent": GradientAscent(1e-3, epochs=2, batch_size=16),
    "NegGradPlus": NegGradPlus(epochs=1, batch_size=16),
    "RandomLabel": RandomLabel(1e-3, epochs=1, batch_size=32),
    "EMMN": EMMN(noise_images=8, batch_size=16),
    "JustInTime": JustInTime(copies=4, batch_size=16),
    "SCRUB": SCRUB(batch_size=16, forget_batch_size=16, max_epochs=1, epochs=2),
    "SalUn": SalUn(epochs=1, batch_size=16),
    "SSD": SSD(selection=1.5, batch_size=8),
    "LFSSD": LFSSD(selection=1.2, batch_size=8),
    "BadTeacher": BadTeacher(batch_size=16),
    "EUK": EUK(1, epochs=1, batch_size=32),
    "CFK": CFK(1, epochs=1, batch_size=32),
    "L1Sparse": L1Sparse(1e-3, epochs=2, batch_size=32),
    "FisherForgetting": FisherForgetting(),
    "BoundaryShrink": BoundaryShrink(learning_rate=1e-3, epochs=1, batch_size=16),
    "BoundaryExpand": BoundaryExpand(1e-3, epochs=1, batch_size=16),
    "NoiseAndDistil": NoiseAndDistil(epochs=1, batch_size=32),
    "SelectiveReset": SelectiveReset(epochs=1, learning_rate=0.02, batch_size=32),
    "SelectiveReset example": SelectiveReset(epochs=1, share=0.1, estimate="example", batch_size=32),
    "UNSIR": UNSIR(noise_images=8, noise_steps=4, noise_repeats=2, retain_per_class=15, batch_size=32),
    "UNSIR paper": UNSIR.preset(  # the published penalty lets the noise learn nothing on inputs as small as these
        "paper", noise_images=8, noise_steps=4, noise_penalty=1, noise_repeats=3, retain_per_class=15, batch_size=32
    ),
}

by_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def same_draw(first: nn.Module, second: nn.Module) -> bool:
    return digest_model(first) == digest_model(second)


@by_method
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_forgets_on_every_shape_of_model(method: Method, shape: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(shape)
    before = {name: tensor.clone() for name, tensor in problem.model.state_dict().items()}
    problem.model.train()
    frozen = next(problem.model.parameters()).requires_grad_(False)
    try:
        result = unlearn(problem, method, seed=3, execution=tiny.QUIET)
        assert problem.model.training, "the mode of the original changed"
        assert not frozen.requires_grad, "the original takes gradients again"
    finally:
        frozen.requires_grad_(True)
        problem.model.eval()
    after = problem.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    assert result.model is not problem.model
    assert not any(module.training for module in result.model.modules())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.state_dict().values())
    assert not same_draw(result.model, problem.model), "nothing was learned"
    assert tiny.logits(result.model, problem.forget).shape == (len(problem.forget), tiny.CLASSES)


# Numbers below 1 that mean something: a weight of nothing, by design.
ACCEPTED = {
    ("Extrapolate", "weight_decay", 0),
    ("FineTune", "weight_decay", 0),
    ("NegGradPlus", "weight_decay", 0),
    ("EMMN", "noise_penalty", 0),
    ("UNSIR", "noise_penalty", 0),
    ("SCRUB", "weight_decay", 0),
    ("SCRUB", "retain_weight", 0),
    ("SCRUB", "distillation_weight", 0),
    ("SalUn", "weight_decay", 0),
    ("EUK", "weight_decay", 0),
    ("CFK", "weight_decay", 0),
    ("L1Sparse", "weight_decay", 0),
    ("L1Sparse", "plain_epochs", 0),
    ("SelectiveReset", "distilled", 0),
    ("SelectiveReset", "weight_decay", 0),
}


def numeric_settings(settings: Any) -> Iterator[tuple[str, str, Callable[[float], Any]]]:
    """Class, field and maker of each numeric setting, of what a setting holds too."""
    kinds = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if {int, float} & {kinds[field.name], *get_args(kinds[field.name])}:
            yield (
                type(settings).__name__,
                field.name,
                lambda number, name=field.name: dataclasses.replace(settings, **{name: number}),
            )
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                yield from numeric_settings(part)


@by_method
def test_senseless_numbers_are_refused_when_they_are_given(method: Method) -> None:
    found = list(numeric_settings(method))
    assert len(found) >= (0 if isinstance(method, Retrain) else 2)
    for kind, name, make in found:
        for value in (-1, 0, math.nan):
            if (kind, name, value) in ACCEPTED:
                make(value)
            else:
                with pytest.raises(SettingError, match=rf"^{name} must .*, not {value}$"):
                    make(value)


def test_stages_are_settings_too() -> None:
    assert {(kind, name) for kind, name, _ in numeric_settings(METHODS["FineTune"])} == {
        ("Stage", "learning_rate"),
        ("Stage", "epochs"),
        ("Stage", "steps"),
        ("FineTune", "weight_decay"),
        ("FineTune", "batch_size"),
        ("FineTune", "retain_per_class"),
    }
    with pytest.raises(SettingError, match="stages is empty; give at least one, as in"):
        FineTune(())
    with pytest.raises(SettingError, match=r"schedule must be one of Schedule\.CONSTANT"):
        Stage(0.1, schedule="constant")


@by_method
@pytest.mark.parametrize("form", tiny.FORMS)
def test_every_form_of_dataset_gives_the_same_model(method: Method, form: str, cnn_problem: Problem) -> None:
    data = tiny.SHAPES["small_cnn"].data()
    result = unlearn(tiny.restated(cnn_problem, tiny.FORMS[form](data)), method, seed=1, execution=tiny.QUIET)
    reference = unlearn(tiny.restated(cnn_problem, data), method, seed=1, execution=tiny.QUIET)
    assert same_draw(result.model, reference.model)


@by_method
@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT"])
def test_the_seed_decides_every_bit(method: Method, shape: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(shape)
    torch.manual_seed(1)
    first = unlearn(problem, method, seed=7, execution=tiny.QUIET)
    torch.manual_seed(2)
    random.seed(5)
    second = unlearn(problem, method, seed=7, execution=tiny.QUIET)
    other = unlearn(problem, method, seed=8, execution=tiny.QUIET)
    assert same_draw(first.model, second.model)
    assert [phase.history for phase in first.record.phases] == [phase.history for phase in second.record.phases]
    assert not same_draw(first.model, other.model), "the order of examples, at least, depends on the seed"


@by_method
def test_generators_and_settings_of_the_caller_stay(method: Method, mlp_problem: Problem) -> None:
    def state() -> tuple[object, ...]:
        numpy_state = np.random.get_state()
        return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.random.get_rng_state().tolist()

    before = state()
    unlearn(mlp_problem, method, execution=tiny.QUIET)
    assert state() == before
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.is_grad_enabled()


@by_method
def test_each_missing_need_is_named_before_anything_runs(method: Method, mlp_problem: Problem) -> None:
    assert method.needs
    for need in method.needs:
        absent = () if need is Need.CLASSES else None
        keep = {"classes": (0,)} if need is Need.FORGET else {}
        lacking = dataclasses.replace(mlp_problem, **{**keep, need.value: absent})
        with pytest.raises(MissingNeedError, match=rf"{type(method).__name__} needs .*`{need.value}=") as failure:
            unlearn(lacking, method, execution=tiny.QUIET)
        assert "pass" in str(failure.value)


@by_method
def test_runs_with_its_needs_and_nothing_else(method: Method, mlp_problem: Problem) -> None:
    given = {need.value: getattr(mlp_problem, need.value) for need in method.needs}
    if not {"forget", "classes"} & set(given):
        given["classes"] = (0,)
    result = unlearn(Problem(mlp_problem.model, tiny.TASK, **given), method, execution=tiny.QUIET)
    assert not same_draw(result.model, mlp_problem.model)


@by_method
def test_the_record_is_complete_and_holds_no_data(method: Method, mlp_problem: Problem) -> None:
    result = unlearn(mlp_problem, method, seed=5, execution=tiny.QUIET)
    record = result.record
    text = record.model_dump_json()
    assert Record.model_validate_json(text) == record
    assert json.loads(text)["settings"] == json.loads(json.dumps(dataclasses.asdict(method)))
    assert (record.method, record.seed, record.guarantee) == (type(method).__name__, 5, method.tier)
    assert record.classes == [0]
    assert result.started_from(mlp_problem.model)
    assert not result.started_from(result.model)
    assert digest_model(mlp_problem.model) not in text, "whoever trains with a guess could compare"
    assert record.result_digest == digest_model(result.model)
    assert {name: entry.examples for name, entry in record.data.items()} == {"forget": 30, "retain": 90}
    assert record.phases
    for phase in record.phases:
        assert phase.steps == len(phase.history) > 0
        assert phase.seconds > 0
        assert phase.examples > 0
        assert phase.peak_memory_bytes > 1e6
    assert record.examples == sum(phase.examples for phase in record.phases)
    assert record.seconds >= sum(phase.seconds for phase in record.phases)
    assert {"expunge", "torch", "accelerate", "transformers", "python"} <= set(record.versions)
    assert result.key.hex() not in text
    inputs, _ = tiny.tensors_of(mlp_problem.forget)
    assert not any(repr(round(value, 4))[:6] in text for value in inputs[:5].flatten().tolist())


@by_method
def test_two_records_of_the_same_request_cannot_be_linked(method: Method, mlp_problem: Problem) -> None:
    first, second = (unlearn(mlp_problem, method, execution=tiny.QUIET).record for _ in range(2))
    assert first.result_digest == second.result_digest
    assert first.original_digest != second.original_digest
    assert not {entry.digest for entry in first.data.values()} & {entry.digest for entry in second.data.values()}


@by_method
def test_a_task_it_is_not_defined_for_is_refused(method: Method, mlp_problem: Problem) -> None:
    if method.tasks == (Task,):
        method.require(dataclasses.replace(mlp_problem, task=_Unknown()))
    else:
        with pytest.raises(UnsupportedTaskError, match=r"works on Classification, not on _Unknown"):
            unlearn(dataclasses.replace(mlp_problem, task=_Unknown()), method, execution=tiny.QUIET)


@pytest.mark.parametrize("kind", sorted({type(method) for method in METHODS.values()}, key=lambda kind: kind.__name__))
def test_class_attributes_are_filled_in(kind: type[Method]) -> None:
    assert isinstance(kind.tier, Tier)
    assert kind.tier.meaning
    assert isinstance(kind.maturity, Maturity)
    assert kind.paper
    assert kind.__doc__
    assert kind() == kind(), "the defaults are an instance"
    for name in kind.presets:
        assert kind.preset(name) != kind.preset(name, **{dataclasses.fields(kind)[0].name: 7})
    with pytest.raises(SettingError, match=f"{kind.__name__} has no preset 'absent'; it has:"):
        kind.preset("absent")


def test_entry_points_and_exports_and_this_table_agree() -> None:
    exported = {
        getattr(expunge.methods, name)
        for name in expunge.methods.__all__
        if isinstance(getattr(expunge.methods, name), type) and issubclass(getattr(expunge.methods, name), Method)
    } - {Method}
    entered = {
        entry.name: entry.load() for entry in entry_points(group="expunge.methods") if entry.dist.name == "expunge"
    }
    assert set(entered.values()) == exported
    # Those that work from a deletion state or need an optimum have models of their own, and tables in tests/methods;
    # those for text and for images have theirs in test_every_language_method and test_every_image_method.
    elsewhere = {kind for kind in exported if Need.STATE in kind.needs or kind.tasks in ((CausalLM,), (ImageToImage,))}
    elsewhere |= {NewtonRemoval, NoisyFineTune}
    elsewhere |= {CT, MSG}  # for convolutions alone
    assert {type(method) for method in METHODS.values()} == exported - elsewhere
    for name, kind in entered.items():
        assert name.replace("-", "") == kind.__name__.lower()


def test_a_method_that_writes_to_the_original_is_caught(mlp_problem: Problem) -> None:
    clobbered = dataclasses.replace(mlp_problem, model=tiny.SHAPES["mlp"].build())
    with pytest.raises(ModelChangedError, match=r"_Vandal wrote to the original model.*run\.copy"):
        unlearn(clobbered, _Vandal(), execution=tiny.QUIET)


# Canaries: the step must bring the behaviour on the forget set nearer to that of retrained models.

SEEDS = range(5)

CANARIES: dict[str, Method] = {
    "Retrain": Retrain(),
    "Extrapolate": Extrapolate(learning_rate=0.003, epochs=2, batch_size=16),
    "FineTune": FineTune((Stage(0.01, epochs=6),), algorithm=Algorithm.ADAM, batch_size=32),
    "GradientAscent": GradientAscent(0.01, epochs=10, batch_size=16),
    "NegGradPlus": NegGradPlus(0.8, 0.05, epochs=5, batch_size=32),
    "RandomLabel": RandomLabel(0.01, epochs=10, batch_size=32),
    "EMMN": EMMN(noise_images=32, noise_repeats=20, learning_rate=0.02, batch_size=32),
    "JustInTime": JustInTime(noise=0.5, learning_rate=0.03, epochs=10, batch_size=16),
    "SCRUB": SCRUB(0.02, epochs=6, max_epochs=4, batch_size=16, retain_weight=1.0, distillation_weight=0.5),
    "SalUn": SalUn(learning_rate=0.05, epochs=5, batch_size=16),
    "SSD": SSD(selection=1.5, batch_size=8),
    "LFSSD": LFSSD(selection=1.2, batch_size=8),
    "BadTeacher": BadTeacher(learning_rate=0.01, epochs=10, batch_size=32),
    "EUK": EUK(1, learning_rate=0.05, epochs=10, batch_size=16),
    "CFK": CFK(1, learning_rate=0.05, epochs=20, batch_size=16),
    "L1Sparse": L1Sparse(1e-3, learning_rate=0.05, epochs=10, batch_size=16),
    "FisherForgetting": FisherForgetting(1e-5),
    "BoundaryShrink": BoundaryShrink(learning_rate=0.01, epochs=10, batch_size=16),
    "BoundaryExpand": BoundaryExpand(0.01, epochs=10, batch_size=16),
    "NoiseAndDistil": NoiseAndDistil(learning_rate=0.01, epochs=5, batch_size=16),
    "SelectiveReset": SelectiveReset(epochs=8, learning_rate=0.05, batch_size=16),
    "UNSIR": UNSIR.preset(  # as many steps of repair as published, with fewer examples a step
        "paper", noise_images=16, noise_penalty=1, noise_repeats=4, retain_per_class=30, repair_epochs=4, batch_size=8
    ),
}


@pytest.fixture(scope="module")
def references() -> list[tuple[Problem, Tensor]]:
    """For each seed a problem, and what three models retrained without the forget set say of it."""
    pairs: list[tuple[Problem, Tensor]] = []
    shape = tiny.SHAPES["mlp"]
    for seed in SEEDS:
        # Clouds that overlap: an original that is sure of everything would hide the sign of a step.
        data, recipe = tiny.vectors(seed=seed, spread=1.2), tiny.recipe(shape, epochs=10)
        problem = tiny.problem(recipe(data, seed=seed), data, recipe=recipe)
        oracles = [recipe(problem.retain, seed=1000 + 10 * seed + number) for number in range(3)]
        mean = torch.stack([tiny.logits(oracle, problem.forget).softmax(1) for oracle in oracles]).mean(0)
        pairs.append((problem, mean.log()))
    return pairs


def gains(method: Method, references: list[tuple[Problem, Tensor]]) -> list[float]:
    """By how much the divergence to the oracles on the forget set shrank, a number a seed."""
    found: list[float] = []
    for seed, (problem, oracle) in zip(SEEDS, references, strict=True):
        model = unlearn(problem, method, seed=seed, execution=tiny.QUIET).model
        distances = [
            float(tiny.TASK.divergence(tiny.logits(each, problem.forget), oracle).mean())
            for each in (problem.model, model)
        ]
        found.append(distances[0] - distances[1])
    return found


def test_every_method_has_a_canary() -> None:
    assert {type(method) for method in CANARIES.values()} == {type(method) for method in METHODS.values()}


@pytest.mark.parametrize("name", CANARIES)
def test_the_step_shrinks_the_distance_to_the_oracles(name: str, references: list[tuple[Problem, Tensor]]) -> None:
    low, _ = tiny.interval(gains(CANARIES[name], references))
    assert low > 0.01


def test_a_wrong_sign_fails_the_canary(references: list[tuple[Problem, Tensor]]) -> None:
    right = CANARIES["GradientAscent"]
    assert isinstance(right, GradientAscent)
    _, high = tiny.interval(gains(_WrongSign(right.learning_rate, right.epochs, right.batch_size), references))
    assert high < 0


def test_doing_nothing_fails_the_canary(references: list[tuple[Problem, Tensor]]) -> None:
    low, high = tiny.interval(gains(_NoOperation(), references))
    assert low == high == 0


@dataclasses.dataclass(frozen=True)
class _Plain(Method):
    needs = frozenset({Need.FORGET})
    tier = Tier.EMPIRICAL
    paper = "a test"
    maturity = Maturity.EXPERIMENTAL


@dataclasses.dataclass(frozen=True)
class _NoOperation(_Plain):
    def apply(self, problem: Problem, run: Run) -> nn.Module:
        return run.copy(problem.model).eval()


@dataclasses.dataclass(frozen=True)
class _Vandal(_Plain):
    def apply(self, problem: Problem, run: Run) -> nn.Module:
        with torch.no_grad():
            next(problem.model.parameters()).add_(1)
        return run.copy(problem.model).eval()


@dataclasses.dataclass(frozen=True)
class _WrongSign(GradientAscent):
    def apply(self, problem: Problem, run: Run) -> nn.Module:
        model = run.copy(problem.model)
        forget = Term(problem.forget, problem.task.losses, weight=1.0, batch_size=self.batch_size)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9)
        run.train("ascend", model, [forget], optimizer, epochs=self.epochs)
        return model.eval()


class _Unknown(Task):
    collate = stack = outputs = losses = divergence = signal = quality = None
    groups = answers = features = refit_head = None


_Unknown.__abstractmethods__ = frozenset()
