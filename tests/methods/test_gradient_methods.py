"""Fine-tuning, gradient ascent, NegGrad+ and random labels against short obvious loops in plain torch."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from expunge import Classification, FineTune, GradientAscent, NegGradPlus, Problem, RandomLabel, Run, Stage, unlearn
from expunge.errors import SettingError
from expunge.methods import Method
from expunge.storage import digest_model
from expunge.training import Algorithm, Schedule
from expunge.training.seeds import generator

WHOLE = 1000  # larger than any set here: one batch holds everything, so that its order does not matter


def reference(
    model: nn.Module, objective: Callable[[nn.Module], Tensor], optimizer: str, steps: int, **settings: Any
) -> nn.Module:
    """The slow obvious loop."""
    model = copy.deepcopy(model).train()
    stepper = getattr(torch.optim, optimizer)(model.parameters(), **settings)
    for _ in range(steps):
        stepper.zero_grad()
        objective(model).backward()
        stepper.step()
    return model


def cross_entropy(model: nn.Module, dataset: Any) -> Tensor:
    inputs, labels = tiny.tensors_of(dataset)
    return F.cross_entropy(model(inputs), labels)


def assert_close(method: Method, problem: Problem, expected: nn.Module) -> None:
    result = unlearn(problem, method, execution=tiny.QUIET).model
    moved = (tiny.flat(expected) - tiny.flat(problem.model)).abs().max()
    assert moved > 1e-4, "a reference that stands still would show nothing"
    assert torch.allclose(tiny.flat(result), tiny.flat(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_fine_tune_descends_on_the_retain_set(name: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(name)
    expected = reference(
        problem.model,
        lambda model: cross_entropy(model, problem.retain),
        "SGD",
        3,
        lr=0.05,
        momentum=0.9,
        weight_decay=5e-4,
    )
    assert_close(FineTune((Stage(0.05, epochs=3),), batch_size=WHOLE), problem, expected)


def test_fine_tune_runs_its_stages_one_after_the_other(mlp_problem: Problem) -> None:
    def objective(model: nn.Module) -> Tensor:
        return cross_entropy(model, mlp_problem.retain)

    first = reference(mlp_problem.model, objective, "Adam", 2, lr=0.02, weight_decay=5e-4)
    expected = reference(first, objective, "Adam", 3, lr=0.01, weight_decay=5e-4)
    stages = (Stage(0.02, epochs=2), Stage(0.01, steps=3))
    assert_close(FineTune(stages, algorithm=Algorithm.ADAM, batch_size=WHOLE), mlp_problem, expected)
    record = unlearn(mlp_problem, FineTune(stages, batch_size=WHOLE), execution=tiny.QUIET).record
    assert [(phase.name, phase.steps) for phase in record.phases] == [("fine-tune-1", 2), ("fine-tune-2", 3)]


def test_fine_tune_on_a_balanced_part(mlp_problem: Problem) -> None:
    method = FineTune((Stage(0.01, epochs=2),), batch_size=WHOLE, retain_per_class=7)
    assert unlearn(mlp_problem, method, execution=tiny.QUIET).record.examples == 2 * 7 * (tiny.CLASSES - 1)


def test_fine_tune_follows_its_schedule(mlp_problem: Problem) -> None:
    constant, cosine = (
        unlearn(mlp_problem, FineTune((Stage(0.05, epochs=4, schedule=schedule),)), execution=tiny.QUIET).model
        for schedule in (Schedule.CONSTANT, Schedule.COSINE)
    )
    lengths = [float((tiny.flat(model) - tiny.flat(mlp_problem.model)).norm()) for model in (constant, cosine)]
    assert 0 < lengths[1] < lengths[0]


@pytest.mark.parametrize("name", ["mlp", "small_cnn"])
def test_gradient_ascent_climbs_the_forget_loss(name: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(name)
    expected = reference(
        problem.model, lambda model: -cross_entropy(model, problem.forget), "SGD", 3, lr=0.02, momentum=0.9
    )
    assert_close(GradientAscent(0.02, epochs=3, batch_size=WHOLE), problem, expected)


def test_gradient_ascent_raises_the_forget_loss_and_clips(mlp_problem: Problem) -> None:
    free, clipped = (
        unlearn(mlp_problem, GradientAscent(0.05, epochs=5, clip_norm=norm), execution=tiny.QUIET)
        for norm in (None, 1e-3)
    )
    history = free.record.phases[0].history
    assert history[-1] < history[0] < 0, "the objective is minus the loss"
    assert float((tiny.flat(clipped.model) - tiny.flat(mlp_problem.model)).norm()) < 0.05 * 1e-3 * 5 * 5


@pytest.mark.parametrize("weight", [0.5, 0.95])
@pytest.mark.parametrize("name", ["mlp", "ViT"])
def test_neg_grad_plus_weighs_both_sets(weight: float, name: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(name)
    if name == "ViT":
        problem = dataclasses.replace(problem, model=_without_dropout(problem.model))

    def logits_loss(model: nn.Module, dataset: Any) -> Tensor:
        inputs, labels = tiny.tensors_of(dataset)
        outputs = model(inputs)
        return F.cross_entropy(outputs if isinstance(outputs, Tensor) else outputs.logits, labels)

    def objective(model: nn.Module) -> Tensor:
        return weight * logits_loss(model, problem.retain) - (1 - weight) * logits_loss(model, problem.forget)

    expected = reference(problem.model, objective, "SGD", 3, lr=0.05, momentum=0.9, weight_decay=5e-4)
    assert_close(NegGradPlus(weight, 0.05, epochs=3, batch_size=WHOLE), problem, expected)


def _without_dropout(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("weight", [-0.1, 0.0, 1.0, 2.0])
def test_neg_grad_plus_refuses_a_weight_outside(weight: float) -> None:
    with pytest.raises(SettingError, match="retain_weight must lie between 0 and 1"):
        NegGradPlus(weight)


@dataclasses.dataclass(frozen=True)
class Spy(Classification):
    """Remembers the labels that each forget example was trained with."""

    seen: list[tuple[Tensor, Tensor]] = dataclasses.field(default_factory=list)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        if model.training:
            self.seen.append((batch["inputs"].clone(), batch["labels"].clone()))
        return super().losses(model, batch)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_random_labels_are_wrong_and_fixed_over_epochs(form: str, mlp_problem: Problem) -> None:
    spy = Spy(tiny.CLASSES)
    data = tiny.FORMS[form](tiny.SHAPES["mlp"].data())
    problem = dataclasses.replace(tiny.restated(mlp_problem, data), task=spy)
    unlearn(problem, RandomLabel(1e-3, epochs=4, batch_size=16), seed=6, execution=tiny.QUIET)
    given = _labels_by_example(spy.seen)
    forgotten, true_labels = tiny.tensors_of(mlp_problem.forget)
    kept, kept_labels = tiny.tensors_of(mlp_problem.retain)
    for value, label in zip(kept, kept_labels.tolist(), strict=True):
        assert given[_identity(value)] == [label] * 4, "retained examples keep theirs"
    drawn: list[int] = []
    for value, label in zip(forgotten, true_labels.tolist(), strict=True):
        labels = given[_identity(value)]
        assert len(labels) == 4
        assert len(set(labels)) == 1, "one label over all epochs"
        assert labels[0] != label, "and never the true one"
        drawn.append(labels[0])
    assert set(drawn) == {1, 2, 3}, "each wrong class occurs"


def test_wrong_labels_are_uniform() -> None:
    classes, draws = 5, 20_000
    shift = torch.randint(1, classes, (draws,), generator=generator(0, "wrong labels"))
    counts = shift.bincount(minlength=classes)
    assert counts[0] == 0
    # Four standard errors of a binomial share of a quarter.
    assert (counts[1:] / draws - 0.25).abs().max() < 4 * (0.25 * 0.75 / draws) ** 0.5


def _labels_by_example(seen: list[tuple[Tensor, Tensor]]) -> dict[bytes, list[int]]:
    found: dict[bytes, list[int]] = {}
    for inputs, labels in seen:
        for value, label in zip(inputs, labels.tolist(), strict=True):
            found.setdefault(_identity(value), []).append(label)
    return found


def _identity(value: Tensor) -> bytes:
    return value.numpy().tobytes()


def test_random_label_works_where_fields_stand_in_another_order(mlp_problem: Problem) -> None:
    task = Classification(tiny.CLASSES, inputs=1, labels=0)
    inputs, labels = tiny.SHAPES["mlp"].data().tensors
    swapped = [(int(label), value) for value, label in zip(inputs, labels, strict=True)]
    data = torch.utils.data.Subset(swapped, range(len(swapped)))
    parts = tiny.split(data, where=lambda example: example[0] == 0)
    problem = Problem(mlp_problem.model, task, parts.forget, parts.retain)
    method = RandomLabel(1e-3, epochs=1)
    one, other = (unlearn(each, method, execution=tiny.QUIET).model for each in (problem, mlp_problem))
    assert digest_model(one) == digest_model(other)


def test_retrain_returns_what_any_recipe_makes(mlp_problem: Problem) -> None:
    from expunge import Retrain

    seen: list[tuple[int, int]] = []

    def recipe(dataset: Any, seed: int) -> nn.Module:
        seen.append((len(dataset), seed))
        torch.manual_seed(seed)
        return tiny.SHAPES["mlp"].build().train()

    result = unlearn(dataclasses.replace(mlp_problem, recipe=recipe), Retrain(), seed=9, execution=tiny.QUIET)
    assert seen == [(90, 9)], "it trains on the retain set, once, with the seed of the run"
    assert not result.model.training
    assert result.record.phases == []
    assert result.record.guarantee == "exact"


def test_retrain_equals_the_recipe_itself(mlp_problem: Problem) -> None:
    from expunge import Retrain

    assert mlp_problem.recipe is not None
    result = unlearn(mlp_problem, Retrain(), seed=4, execution=tiny.QUIET)
    assert digest_model(result.model) == digest_model(mlp_problem.recipe(mlp_problem.retain, 4))


def test_run_is_a_function_of_the_seed_alone(mlp_problem: Problem) -> None:
    task, method = mlp_problem.task, GradientAscent(1e-3, epochs=2)
    direct = method.apply(mlp_problem, Run(task, 3, tiny.QUIET))
    assert digest_model(direct) == digest_model(unlearn(mlp_problem, method, seed=3, execution=tiny.QUIET).model)
