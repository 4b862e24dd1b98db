"""UNSIR does what the paper says; each fault of the published notebook has a test."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge import UNSIR, Classification, Noise, Problem, Run, unlearn
from expunge.errors import ForgetSetError, LabelError, MissingNeedError, ShapeError
from expunge.storage import digest_model
from expunge.tasks.classification import ClassBatch

SMALL = UNSIR(noise_images=6, noise_steps=3, noise_repeats=2, retain_per_class=10, batch_size=16)


@dataclass(frozen=True)
class Spy(Classification):
    """Remembers every batch that a trainable model in training mode is given, that is, impair and repair."""

    seen: list[ClassBatch] = field(default_factory=list)

    def outputs(self, model: nn.Module, batch: ClassBatch) -> Tensor:
        if model.training and "labels" in batch:
            self.seen.append(batch)
        return super().outputs(model, batch)


@dataclass
class Unreadable:
    """A forget set that must never be looked at."""

    length: int = 24

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        raise AssertionError(f"example {index} of the forget set was read")


@dataclass
class Guarded:
    """A dataset of which only some positions may be read."""

    data: TensorDataset
    allowed: frozenset[int]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        assert index in self.allowed, f"example {index} was read"
        return self.data[index]


def forget_classes(problem: Problem, *classes: int, **changes: Any) -> Problem:
    """The same model with other classes to be forgotten."""
    return dataclasses.replace(tiny.problem(problem.model, tiny.SHAPES["small_cnn"].data(), classes=classes), **changes)


def impaired_on(problem: Problem, method: UNSIR, run: Run | None = None) -> tuple[Tensor, Tensor]:
    """All inputs and labels of the impair phase, in the order in which they were trained on."""
    task = problem.task
    assert isinstance(task, Spy)
    run = run or Run(task, seed=0, execution=tiny.QUIET)
    method.apply(problem, run)
    impair = next(phase for phase in run.phases if phase.name == "impair")
    batches = task.seen[: impair.steps]
    return torch.cat([batch["inputs"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


@pytest.mark.parametrize("classes", [(2,), (0, 2), (1, 2, 3)], ids=str)
def test_every_noise_image_is_used_and_carries_its_own_class(classes: tuple[int, ...], cnn_problem: Problem) -> None:
    # Notebook: the second class got the label of the first, and 3 of 256 images were used.
    problem = forget_classes(cnn_problem, *classes, task=Spy(tiny.CLASSES))
    learned: dict[int, Tensor] = {}
    run = _remembering_noise(problem, learned)
    inputs, labels = impaired_on(problem, SMALL, run)
    for label in classes:
        mine = inputs[labels == label].flatten(1)
        assert len(mine) == SMALL.noise_images * SMALL.noise_repeats
        unique, counts = mine.unique(dim=0, return_counts=True)
        assert len(unique) == SMALL.noise_images, "each image of the class is there"
        assert counts.tolist() == [SMALL.noise_repeats] * SMALL.noise_images, "and as often as the others"
        assert torch.equal(unique, learned[label].flatten(1).unique(dim=0)), "it was learned for this very class"
    retained = ~torch.isin(labels, torch.tensor(classes))
    assert int(retained.sum()) == SMALL.retain_per_class * (tiny.CLASSES - len(classes))


def _remembering_noise(problem: Problem, learned: dict[int, Tensor]) -> Run:
    """A run that keeps what the noise phase learned, by the class whose error it maximised."""
    run = Run(problem.task, seed=0, execution=tiny.QUIET)
    train = run.train

    def remember(phase: str, model: nn.Module, terms: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        record = train(phase, model, terms, *arguments, **options)
        if phase == "noise":
            labels = terms[0].data.tensors[1]
            values = next(model.parameters()).detach().clone()
            learned.update({int(label): values[labels == label] for label in labels.unique()})
        return record

    run.train = remember  # type: ignore[method-assign]
    return run


@pytest.mark.parametrize(("images", "repeats", "classes"), [(4, 3, (0,)), (5, 1, (0, 3)), (3, 7, (1, 2))])
def test_number_of_noise_examples(images: int, repeats: int, classes: tuple[int, ...], cnn_problem: Problem) -> None:
    method = dataclasses.replace(SMALL, noise_images=images, noise_repeats=repeats)
    result = unlearn(forget_classes(cnn_problem, *classes), method, execution=tiny.QUIET)
    retained = SMALL.retain_per_class * (tiny.CLASSES - len(classes))
    phases = {phase.name: phase for phase in result.record.phases}
    assert list(phases) == ["noise", "impair", "repair"]
    assert phases["noise"].examples == images * len(classes) * method.noise_steps
    assert phases["impair"].examples == images * repeats * len(classes) + retained
    assert phases["repair"].examples == retained


def test_repair_sees_the_retained_examples_alone(cnn_problem: Problem) -> None:
    task = Spy(tiny.CLASSES)
    problem = forget_classes(cnn_problem, 1, task=task)
    run = Run(task, seed=0, execution=tiny.QUIET)
    SMALL.apply(problem, run)
    labels = torch.cat([batch["labels"] for batch in task.seen[-run.phases[-1].steps :]])
    assert labels.bincount(minlength=tiny.CLASSES).tolist() == [10, 0, 10, 10]


@pytest.mark.parametrize("shape", ["small_cnn", "all_cnn", "ResNet9", "MobileNetV2"])
def test_noise_is_learned_against_the_original_in_evaluation_mode(
    shape: str, trained: Callable[[str], Problem]
) -> None:
    # Notebook: BatchNorm took in the noise before impairing began.
    problem = trained(shape)
    before = _batch_statistics(problem.model)
    assert before, "this shape has BatchNorm"
    statistics: dict[str, list[Tensor]] = {}
    run = Run(problem.task, seed=0, execution=tiny.QUIET)
    train, copied = run.train, run.copy
    copies: list[nn.Module] = []

    def copy(model: nn.Module) -> nn.Module:
        copies.append(copied(model))
        return copies[-1]

    def spy(phase: str, *arguments: Any, **options: Any) -> Any:
        statistics[f"before {phase}"] = _batch_statistics(copies[-1])
        record = train(phase, *arguments, **options)
        statistics[f"after {phase}"] = _batch_statistics(copies[-1])
        return record

    run.copy, run.train = copy, spy  # type: ignore[method-assign]
    SMALL.apply(problem, run)
    for kept in (_batch_statistics(problem.model), *(statistics[f"{when} noise"] for when in ("before", "after"))):
        assert all(torch.equal(one, other) for one, other in zip(before, kept, strict=True))
    assert all(torch.equal(*pair) for pair in zip(before, statistics["before impair"], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(before, statistics["after impair"], strict=True))


def _batch_statistics(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if "running" in name or "batches" in name]


@pytest.mark.filterwarnings("ignore:the noise learned nothing")
@pytest.mark.parametrize("side", [8, 64])
def test_noise_maximises_the_error_at_any_resolution(side: int) -> None:
    # Notebook: a penalty on the sum over pixels swamps the loss at 224 pixels and leaves a blank image.
    data = tiny.images(per_class=4, side=side)
    recipe = tiny.recipe(tiny.SHAPES["small_cnn"], epochs=20)
    problems = [tiny.problem(recipe(data, seed=seed), data) for seed in range(4)]
    # Capped: some rise by 15, some by 50; what matters is that they rise well beyond where a guess stands.
    rises = [min(_rise(problem, seed, penalty=0.3), 10.0) for seed, problem in enumerate(problems)]
    assert tiny.interval(rises)[0] > 1, rises
    if side == 64:
        summed = [_rise(problem, seed, penalty=0.1 * 3 * side * side) for seed, problem in enumerate(problems)]
        lead = [rise - other for rise, other in zip(rises, summed, strict=True)]
        assert tiny.interval(lead)[0] > 1, "a sum over the elements leaves the noise blank"


def _rise(problem: Problem, seed: int, penalty: float) -> float:
    """By how much the cross-entropy of the noise on its own class rises while it is learned."""
    method = UNSIR(noise_images=4, noise_steps=40, noise_learning_rate=0.1, noise_penalty=penalty, retain_per_class=4)
    start, learned = (
        _noise_of(dataclasses.replace(method, noise=noise), problem, Run(problem.task, seed, tiny.QUIET))
        for noise in (Noise.RANDOM, Noise.LEARNED)
    )
    return _error(problem, learned) - _error(problem, start)


def _noise_of(method: UNSIR, problem: Problem, run: Run) -> Tensor:
    noise = method._noise(problem, run, problem.task, problem.retain)
    return torch.stack([noise[index][0] for index in range(method.noise_images)])


def _error(problem: Problem, noise: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(problem.model(noise), torch.zeros(len(noise), dtype=torch.long)))


def test_penalty_per_element_is_the_same_at_every_resolution(cnn_problem: Problem) -> None:
    values: list[float] = []
    for side in (8, 64):
        term = SMALL._error_maximisation(_Indifferent(), tiny.TASK, torch.zeros(2, dtype=torch.long))
        noise = torch.full((2, 3, side, side), 0.5)
        batch = {"inputs": torch.arange(2.0), "labels": torch.zeros(2, dtype=torch.long)}
        penalty = term.objective(_Constant(noise), batch) + torch.log(torch.tensor(float(tiny.CLASSES)))
        values += penalty.tolist()
    assert values == pytest.approx([SMALL.noise_penalty * 0.25] * 4, rel=1e-6)
    assert UNSIR.preset("paper").noise_penalty == pytest.approx(0.1 * 3 * 32 * 32), (
        "the notebook's sum at its own resolution"
    )


class _Indifferent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros(len(inputs), tiny.CLASSES)


class _Constant(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, positions: Tensor) -> Tensor:
        return self.values[positions]


def test_runs_on_class_labels_alone(cnn_problem: Problem) -> None:
    blind = dataclasses.replace(cnn_problem, forget=None)
    result = unlearn(blind, SMALL, seed=2, execution=tiny.QUIET)
    informed = unlearn(cnn_problem, SMALL, seed=2, execution=tiny.QUIET)
    assert digest_model(result.model) == digest_model(informed.model), "knowing the forget set changes nothing"
    assert set(result.record.data) == {"retain"}
    assert result.record.classes == [0]


def test_no_example_of_the_forget_set_is_read(cnn_problem: Problem) -> None:
    # unlearn() itself reads the forget set once for its digest, so the method is called directly.
    problem = dataclasses.replace(cnn_problem, forget=Unreadable())
    model = SMALL.apply(problem, Run(problem.task, seed=0, execution=tiny.QUIET))
    reference = SMALL.apply(cnn_problem, Run(problem.task, seed=0, execution=tiny.QUIET))
    assert digest_model(model) == digest_model(reference)


@pytest.mark.parametrize("noise", Noise)
def test_no_forget_position_of_a_shared_dataset_is_read(noise: Noise, cnn_problem: Problem) -> None:
    data = tiny.SHAPES["small_cnn"].data()
    retained = frozenset((data.tensors[1] != 0).nonzero().flatten().tolist())
    guarded = torch.utils.data.Subset(Guarded(data, retained), sorted(retained))
    problem = dataclasses.replace(cnn_problem, forget=None, retain=guarded)
    result = unlearn(problem, dataclasses.replace(SMALL, noise=noise), execution=tiny.QUIET)
    assert not result.model.training


@pytest.mark.parametrize("noise", [Noise.RANDOM, Noise.ZERO])
def test_the_controls_skip_the_learning(noise: Noise, cnn_problem: Problem) -> None:
    problem = dataclasses.replace(cnn_problem, task=Spy(tiny.CLASSES))
    run = Run(problem.task, seed=0, execution=tiny.QUIET)
    inputs, labels = impaired_on(problem, dataclasses.replace(SMALL, noise=noise), run)
    assert [phase.name for phase in run.phases] == ["impair", "repair"]
    images = inputs[labels == 0]
    assert len(images) == SMALL.noise_images * SMALL.noise_repeats
    if noise is Noise.ZERO:
        assert not images.any()
    else:
        distinct = images.flatten(1).unique(dim=0)
        assert len(distinct) == SMALL.noise_images
        # 6 x 192 standard normal values: the mean has standard error .03, the deviation .02.
        assert abs(float(distinct.mean())) < 0.12
        assert abs(float(distinct.std()) - 1) < 0.1


@pytest.mark.filterwarnings("ignore:the noise learned nothing")
def test_learned_noise_starts_where_the_random_control_stays(cnn_problem: Problem) -> None:
    method = dataclasses.replace(SMALL, noise_learning_rate=1e-9, noise_steps=1)
    problem, task = cnn_problem, cnn_problem.task
    one, other = (
        _noise_of(each, problem, Run(task, seed=4, execution=tiny.QUIET))
        for each in (method, dataclasses.replace(method, noise=Noise.RANDOM))
    )
    assert torch.allclose(one, other, atol=1e-7)


def test_two_seeds_draw_different_noise(cnn_problem: Problem) -> None:
    one, other = (
        _noise_of(SMALL, cnn_problem, Run(cnn_problem.task, seed=seed, execution=tiny.QUIET)) for seed in (1, 2)
    )
    assert not torch.isclose(one, other).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize("label", [-1, tiny.CLASSES, 99])
def test_a_class_that_is_not_in_the_model(label: int, cnn_problem: Problem) -> None:
    with pytest.raises(LabelError, match=rf"class {label} is not in the model, which has the classes 0 to 3"):
        unlearn(dataclasses.replace(cnn_problem, forget=None, classes=(label,)), SMALL, execution=tiny.QUIET)


def test_retained_examples_of_a_forgotten_class(cnn_problem: Problem) -> None:
    with pytest.raises(ForgetSetError, match=r"24 retained examples belong to a class to be forgotten.*split with `cl"):
        dataclasses.replace(cnn_problem, forget=None, retain=tiny.SHAPES["small_cnn"].data())


def test_single_examples_cannot_be_forgotten(cnn_problem: Problem) -> None:
    with pytest.raises(MissingNeedError, match=r"UNSIR needs whole classes to forget: pass `classes=\(3,\)`"):
        unlearn(dataclasses.replace(cnn_problem, classes=()), SMALL, execution=tiny.QUIET)


def test_retained_images_that_the_model_cannot_take(cnn_problem: Problem) -> None:
    flat = TensorDataset(torch.randn(8, 5), torch.ones(8, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"does not accept inputs of shape \(5,\)"):
        unlearn(dataclasses.replace(cnn_problem, forget=None, retain=flat), SMALL, execution=tiny.QUIET)


def test_works_where_fields_stand_in_another_order(cnn_problem: Problem) -> None:
    inputs, labels = tiny.SHAPES["small_cnn"].data().tensors
    task = Classification(tiny.CLASSES, inputs=2, labels=0)
    kept = labels != 0
    retain = TensorDataset(labels[kept], torch.arange(int(kept.sum())), inputs[kept])
    problem = Problem(cnn_problem.model, task, retain=retain, classes=(0,))
    usual = dataclasses.replace(cnn_problem, forget=None)
    one, other = (unlearn(each, SMALL, execution=tiny.QUIET).model for each in (problem, usual))
    assert digest_model(one) == digest_model(other)


def test_paper_preset_quotes_the_paper() -> None:
    paper = UNSIR.preset("paper")
    assert (paper.noise_images, paper.noise_steps, paper.noise_repeats) == (256, 40, 20)
    assert (paper.impair_learning_rate, paper.repair_learning_rate) == (0.02, 0.01)
    assert (paper.retain_per_class, paper.batch_size, paper.noise_learning_rate) == (1000, 256, 0.1)
    assert paper.noise_images * paper.noise_repeats == 5120
    assert UNSIR.preset("tuned") == UNSIR()


@pytest.mark.parametrize("side", [8, 32])
def test_the_default_noise_maximises_the_error(side: int) -> None:
    data = tiny.images(per_class=4, side=side)
    recipe = tiny.recipe(tiny.SHAPES["small_cnn"], epochs=20)
    problems = [tiny.problem(recipe(data, seed=seed), data) for seed in range(4)]

    rises = [min(_rise(problem, seed, penalty=UNSIR().noise_penalty), 10.0) for seed, problem in enumerate(problems)]

    assert tiny.interval(rises)[0] > 1, rises


def test_noise_that_learns_nothing_is_said(cnn_problem: Problem) -> None:
    with pytest.warns(UserWarning, match="noise learned nothing.*noise_penalty"):
        unlearn(cnn_problem, dataclasses.replace(SMALL, noise_penalty=1e6, noise_steps=40), execution=tiny.QUIET)
