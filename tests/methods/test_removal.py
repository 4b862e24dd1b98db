"""SelectiveReset and Extrapolate against short obvious loops in plain torch, and what they promise besides."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import tiny
from expunge import Algorithm, Extrapolate, Problem, Regression, Run, SelectiveReset, Supervised, split, unlearn
from expunge.errors import MissingNeedError, ModelError, SettingError
from expunge.methods import calibrated
from expunge.methods._extrapolation import FACTORS, largest_harmless, with_weights
from expunge.methods._initialise import scrambled
from expunge.methods._normalisation import has_statistics, remeasure_statistics
from expunge.methods.selective_reset import most_specific, share_for
from expunge.training import Schedule
from expunge.training.seeds import generator

WHOLE = 1000


def squared_gradients(
    model: nn.Module, data: Subset[tuple[Tensor, Tensor]], seed: int, phase: str
) -> dict[str, Tensor]:
    """The mean over batches of 16 of the squared gradient of the mean loss, in evaluation mode."""
    order = torch.randperm(len(data), generator=generator(seed, phase))
    inputs, labels = tiny.tensors_of(data)
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for batch in order.tensor_split(-(-len(order) // 16)):
        model.zero_grad()
        F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None
            total[name] += weight.grad.square() * len(batch) / len(order)
    return total


@pytest.mark.parametrize(("classes", "distilled"), [((0,), 0.5), ((), 0.5), ((0,), 0.0), ((0,), 1.0)])
def test_selective_reset_follows_the_formula(
    classes: tuple[int, ...], distilled: float, trained: Callable[[str], Problem]
) -> None:
    problem, seed = dataclasses.replace(trained("small_cnn"), classes=classes), 3
    method = SelectiveReset(4, share=0.4, distilled=distilled, learning_rate=0.02, batch_size=WHOLE)
    model = copy.deepcopy(problem.model).eval()
    inputs, labels = tiny.tensors_of(problem.retain)
    with torch.no_grad():
        taught = model(inputs)
    taught[:, list(classes)] = -torch.inf
    forget, retain = (
        squared_gradients(model, data, seed, f"importance-{name}")
        for name, data in (("forget", problem.forget), ("retain", problem.retain))
    )
    ratios = {name: forget[name] / retain[name] for name, weight in model.named_parameters() if weight.ndim > 1}
    highest = torch.cat([ratio.flatten() for ratio in ratios.values()]).sort(descending=True).values
    fresh = dict(scrambled(Run(problem.task, seed, tiny.QUIET), problem.model).named_parameters())
    threshold = highest[round(0.4 * len(highest)) - 1]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in ratios:
                weight.copy_(torch.where(ratios[name] >= threshold, fresh[name], weight))
    stepper = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model.train()
    for step in range(4):
        stepper.param_groups[0]["lr"] = 0.02 * Schedule.ONE_CYCLE.factor(step / 4)
        stepper.zero_grad()
        logits = model(inputs)
        told = (taught / 2).softmax(1)
        distance = (told * ((told + 1e-30).log() - (logits / 2).log_softmax(1))).sum(1).mean()
        ((1 - distilled) * F.cross_entropy(logits, labels) + distilled * 4 * distance).backward()
        stepper.step()
    result = unlearn(problem, method, seed=seed, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-4)


def test_the_most_specific_are_the_highest_of_all_tensors_together() -> None:
    ratios = {"a": torch.tensor([[5.0, 1.0], [0.0, torch.inf]]), "b": torch.tensor([[2.0, 3.0]])}
    masks = most_specific(ratios, 0.5)
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [[False, True]]
    assert sum(int(mask.sum()) for mask in most_specific(ratios, 1e-9).values()) == 1


def test_biases_and_normalisation_are_not_reset(trained: Callable[[str], Problem]) -> None:
    """With a rate of nearly nothing, what has moved is what was reset."""
    problem = trained("small_cnn")
    method = SelectiveReset(1, share=0.25, learning_rate=1e-12, weight_decay=0.0, batch_size=WHOLE)
    model = unlearn(problem, method, execution=tiny.QUIET).model
    moved = total = 0
    for name, weight in model.named_parameters():
        changed = ~torch.isclose(weight, problem.model.get_parameter(name), atol=1e-8)
        assert weight.ndim > 1 or not changed.any(), name
        moved, total = moved + int(changed.sum()), total + (weight.numel() if weight.ndim > 1 else 0)
    assert moved == pytest.approx(0.25 * total, rel=0.02)


@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT"])
def test_what_was_reset_is_drawn_from_the_seed(shape: str, trained: Callable[[str], Problem]) -> None:
    method = SelectiveReset(1, share=0.5, learning_rate=1e-12, batch_size=WHOLE)
    models = [unlearn(trained(shape), method, seed=seed, execution=tiny.QUIET).model for seed in (0, 0, 1)]
    assert torch.equal(tiny.flat(models[0]), tiny.flat(models[1]))
    assert (tiny.flat(models[0]) - tiny.flat(models[2])).abs().max() > 1e-2


@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT"])
def test_a_forgotten_class_goes_and_the_others_stay(shape: str, trained: Callable[[str], Problem]) -> None:
    problem = trained(shape)
    rate = 0.02 if shape == "ViT" else 0.05
    model = unlearn(problem, SelectiveReset(15, learning_rate=rate, batch_size=16), execution=tiny.QUIET).model
    assert tiny.accuracy(problem.model, problem.forget) > 0.9
    assert tiny.accuracy(model, problem.forget) < 0.1
    assert tiny.accuracy(model, problem.retain) > 0.9


@pytest.mark.parametrize("shape", ["mlp", "small_cnn", "ViT"])
def test_single_examples_are_asked_without_a_mask(shape: str, trained: Callable[[str], Problem]) -> None:
    whole = trained(shape)
    parts = split(tiny.SHAPES[shape].data(), indices=range(5))
    problem = Problem(whole.model, whole.task, parts.forget, parts.retain)
    method = SelectiveReset(15, learning_rate=0.02, batch_size=16)
    model = unlearn(problem, method, execution=tiny.QUIET).model
    assert tiny.accuracy(model, parts.retain) > 0.9


def test_models_without_matrices_are_refused(mlp_problem: Problem) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.Parameter(torch.ones(tiny.CLASSES))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, : tiny.CLASSES] * self.factors

    with pytest.raises(ModelError, match="Scale has no matrix or kernel whose weights could be reset"):
        unlearn(dataclasses.replace(mlp_problem, model=Scale()), SelectiveReset(), execution=tiny.QUIET)


def test_extrapolate_follows_the_formula(trained: Callable[[str], Problem]) -> None:
    problem = trained("small_cnn")
    inputs, labels = tiny.tensors_of(problem.retain)
    model = copy.deepcopy(problem.model).train()
    stepper = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    for step in range(4):
        stepper.param_groups[0]["lr"] = 0.2 * Schedule.ONE_CYCLE.factor(step / 4)
        stepper.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        stepper.step()
    with_weights(model, problem.model, 2.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
    model(inputs)
    method = Extrapolate(2.5, learning_rate=0.2, epochs=4, batch_size=WHOLE, algorithm=Algorithm.SGD, clip_norm=None)
    result = unlearn(problem, method, execution=tiny.QUIET).model
    assert (tiny.flat(model) - tiny.flat(problem.model)).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result), tiny.flat(model), atol=1e-4)
    assert torch.allclose(tiny.logits(result, problem.retain), tiny.logits(model.eval(), problem.retain), atol=1e-3)


def test_a_factor_of_one_is_the_tuning(trained: Callable[[str], Problem]) -> None:
    problem = trained("small_cnn")
    one, none = (
        unlearn(problem, Extrapolate(factor, epochs=2, batch_size=16), execution=tiny.QUIET).model
        for factor in (1.0, 1e-9)
    )
    assert not torch.allclose(tiny.flat(one), tiny.flat(problem.model), atol=1e-3)
    assert torch.allclose(tiny.flat(none), tiny.flat(problem.model), atol=1e-6)


def test_statistics_are_plain_averages_and_nothing_else_changes(trained: Callable[[str], Problem]) -> None:
    problem = trained("ResNet9")
    model, run = copy.deepcopy(problem.model), Run(problem.task, 0, tiny.QUIET)
    first = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    remeasure_statistics(run, model, problem.retain)
    assert sum(len(each) for each in seen) == len(problem.retain)
    assert first.running_mean is not None
    assert torch.allclose(first.running_mean, torch.cat(seen).mean((0, 2, 3)), atol=1e-5)
    assert first.momentum == 0.1
    assert not any(module.training for module in model.modules())
    assert torch.equal(tiny.flat(model), tiny.flat(problem.model))
    plain = copy.deepcopy(trained("ViT").model)
    assert has_statistics(model)
    assert not has_statistics(plain)
    remeasure_statistics(run, plain, trained("ViT").retain)


def test_regression_needs_no_forget_example() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 3, generator=generator)
    data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    recipe = Supervised(lambda: nn.Linear(3, 1), Regression(0.1), epochs=5, execution=tiny.QUIET)
    parts = split(data, indices=range(20))
    problem = Problem(recipe(data, seed=0), Regression(0.1), parts.forget, parts.retain)
    result = unlearn(problem, Extrapolate(epochs=2), execution=tiny.QUIET)
    assert result.record.phases[0].measured["extrapolation"] in FACTORS


def test_a_rehearsal_finds_the_factor_nearest_to_retraining(mlp_problem: Problem) -> None:
    """It is what a search by hand finds: one retrained model, one tuning, and the least divergence."""
    parts = split(mlp_problem.retain, classes=[2])
    rehearsal = Problem(mlp_problem.model, mlp_problem.task, parts.forget, parts.retain, recipe=mlp_problem.recipe)
    method = Extrapolate(learning_rate=0.002, epochs=2, batch_size=16)
    found = calibrated(method, rehearsal, seed=4, execution=tiny.QUIET)
    assert mlp_problem.recipe is not None
    wanted = tiny.logits(mlp_problem.recipe(parts.retain, seed=4), parts.forget)
    distances = {
        factor: float(tiny.TASK.divergence(tiny.logits(
            unlearn(rehearsal, dataclasses.replace(method, extrapolation=factor), seed=4, execution=tiny.QUIET).model,
            parts.forget,
        ), wanted).mean())
        for factor in FACTORS
    }  # fmt: skip
    assert found == dataclasses.replace(method, extrapolation=min(distances, key=distances.__getitem__))
    assert found.extrapolation != 1
    for missing in ("forget", "retain", "recipe"):
        classes = (2,) if missing == "forget" else ()
        with pytest.raises(MissingNeedError, match=rf"calibrated needs .*`{missing}="):
            calibrated(method, dataclasses.replace(rehearsal, classes=classes, **{missing: None}))


def test_too_few_to_leave_some_out_are_refused(mlp_problem: Problem) -> None:
    few = dataclasses.replace(mlp_problem, retain=torch.utils.data.Subset(mlp_problem.retain, range(9)))
    with pytest.raises(SettingError, match=r"9 held examples are too few to leave a tenth"):
        unlearn(few, Extrapolate(), execution=tiny.QUIET)


def test_the_factor_is_the_largest_that_does_no_harm() -> None:
    before, above, below = 0.5, 0.6, 0.4
    assert largest_harmless([before, below, below, above, below, above, above, above]) == FACTORS[3]
    assert largest_harmless([before, *[before] * 7]) == FACTORS[-1]
    assert largest_harmless([before, *[above] * 7]) == 1, "plain tuning, where everything does harm"


def test_the_factor_is_found_on_what_neither_model_has_seen(mlp_problem: Problem, monkeypatch: Any) -> None:
    """Of the holdout, examples of classes that are kept; without one, a tenth of the retain set is not tuned on."""
    data = tiny.vectors(seed=9)
    seen: list[tuple[int, set[int]]] = []

    def spy(run: Run, original: nn.Module, tuned: nn.Module, retain: Any, dataset: Any, measure: Any) -> Any:
        seen.append((len(retain), set(run.task.labels_of(dataset).tolist())))
        return [[torch.tensor([float(factor > 2)])] for factor in (0, *FACTORS)]

    monkeypatch.setattr("expunge.methods.extrapolate.over_factors", spy)
    for problem in (mlp_problem, dataclasses.replace(mlp_problem, holdout=data)):
        record = unlearn(problem, Extrapolate(epochs=1), execution=tiny.QUIET).record
        assert record.phases[0].measured["extrapolation"] == 2.0
    assert seen[0] == (81, seen[0][1] & {1, 2, 3})
    assert seen[1] == (90, {1, 2, 3})


def test_a_budget_is_a_share_of_the_passes_of_a_retrain(mlp_problem: Problem) -> None:
    """The recipe takes 8 passes over 90 examples; all 30 forget examples and 90 retained ones are measured."""
    asked = SelectiveReset(budget=0.5, learning_rate=0.01, batch_size=90)
    phases = unlearn(mlp_problem, asked, execution=tiny.QUIET).record.phases
    assert [phase.name for phase in phases] == ["importance-forget", "importance-retain", "learn again"]
    assert phases[2].steps == 3  # 4 passes, less a third and 120 / 90, which leaves 2.33, begun ones whole
    assert asked.passes(mlp_problem) == pytest.approx(4 - 1 / 3 - 120 / 90)
    assert dataclasses.replace(asked, distilled=0.0).passes(mlp_problem) == pytest.approx(4 - 120 / 90)
    assert dataclasses.replace(asked, measured_on=9).passes(mlp_problem) == pytest.approx(4 - 1 / 3 - 18 / 90)
    tuned = unlearn(mlp_problem, Extrapolate(1.5, budget=0.5, batch_size=90), execution=tiny.QUIET).record.phases
    assert tuned[0].steps == 4
    without = dataclasses.replace(mlp_problem, recipe=lambda dataset, seed: mlp_problem.model)
    for method in (asked, Extrapolate(budget=0.5)):
        with pytest.raises(MissingNeedError, match="only a `Supervised` recipe tells: pass"):
            method.require(without)
    with pytest.raises(
        SettingError,
        match=r"budget must be above 0\.208 here, not 0\.2: what is done besides .*; raise it, or set `epochs` instead",
    ):
        unlearn(mlp_problem, SelectiveReset(budget=0.2), execution=tiny.QUIET)


@pytest.mark.parametrize(("steps", "share"), [(5, 0.01), (50, 0.1), (150, 0.3), (100_000, 0.3)])
def test_the_share_grows_with_what_can_be_learned_again(steps: int, share: float) -> None:
    assert share_for(steps) == pytest.approx(share)


def test_the_share_used_is_that_of_the_steps(mlp_problem: Problem) -> None:
    method = SelectiveReset(2.5, learning_rate=0.01, batch_size=30)
    phase = unlearn(mlp_problem, method, execution=tiny.QUIET).record.phases[-1]
    assert phase.steps == 8
    assert phase.measured["reset share"] == pytest.approx(share_for(7.5))
