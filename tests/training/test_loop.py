"""The optimisation loop against plain torch."""

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge import GradientAscent, Problem, unlearn
from expunge.errors import DivergedError, SettingError
from expunge.networks import mlp
from expunge.storage import digest_model
from expunge.tasks import Classification
from expunge.training import (
    Algorithm,
    Execution,
    Optimizer,
    Run,
    Schedule,
    Supervised,
    Term,
    over_batches,
    reproducible,
)

DATA = tiny.vectors(per_class=10)
WHOLE = 1000


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(tiny.FEATURES, tiny.CLASSES, hidden=(10,))


def trained(
    optimizer: Optimizer,
    *,
    steps: int = 4,
    batch_size: int = WHOLE,
    execution: Execution = tiny.QUIET,
    build: Callable[[], nn.Module] = network,
    data: TensorDataset = DATA,
    **options: Any,
) -> tuple[nn.Module, Run]:
    """A model trained on the loop."""
    run = Run(tiny.TASK, 0, execution)
    with torch.random.fork_rng():
        model = run.copy(build())
        run.train(
            "train", model, [Term(data, tiny.TASK.losses, batch_size=batch_size)], optimizer, steps=steps, **options
        )
    return model, run


def by_hand(
    optimizer: str, *, steps: int = 4, rates: Sequence[float] | None = None, clip: Any = None, **settings: Any
) -> nn.Module:
    """The slow obvious loop over the whole set."""
    with torch.random.fork_rng():
        model = network().train()
    stepper = getattr(torch.optim, optimizer)(model.parameters(), **settings)
    for step in range(steps):
        if rates is not None:
            stepper.param_groups[0]["lr"] = rates[step]
        stepper.zero_grad()
        F.cross_entropy(model(DATA.tensors[0]), DATA.tensors[1]).backward()
        if clip is not None:
            clip(model.parameters())
        stepper.step()
    return model


def assert_close(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    assert (tiny.flat(network()) - tiny.flat(other)).abs().max() > 1e-3, "a reference must move to show anything"
    assert (tiny.flat(one) - tiny.flat(other)).abs().max() < tolerance


@pytest.mark.parametrize(
    ("settings", "name", "reference"),
    [
        (Optimizer(0.1, Algorithm.SGD), "SGD", {"lr": 0.1}),
        (
            Optimizer(0.1, Algorithm.SGD, momentum=0.9, nesterov=True, weight_decay=0.01),
            "SGD",
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        ),
        (Optimizer(0.01, Algorithm.ADAM, weight_decay=0.1), "Adam", {"lr": 0.01, "weight_decay": 0.1}),
        (Optimizer(0.01, Algorithm.ADAMW, weight_decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_optimizers(settings: Optimizer, name: str, reference: dict[str, Any]) -> None:
    assert_close(trained(settings)[0], by_hand(name, **reference))


@pytest.mark.parametrize("schedule", Schedule)
def test_schedules_move_the_rate(schedule: Schedule) -> None:
    rates = [0.2 * schedule.factor(step / 8) for step in range(8)]
    model, _ = trained(Optimizer(0.2, Algorithm.SGD, schedule=schedule), steps=8)
    assert_close(model, by_hand("SGD", steps=8, rates=rates, lr=0.2))


def test_values_of_the_schedules() -> None:
    assert [Schedule.CONSTANT.factor(at) for at in (0, 0.5, 0.99)] == [1, 1, 1]
    assert [Schedule.COSINE.factor(at) for at in (0, 0.5, 0.75)] == pytest.approx([1, 0.5, (1 - 0.5**0.5) / 2])
    one_cycle = [Schedule.ONE_CYCLE.factor(at) for at in (0, 0.15, 0.3, 0.65, 0.999)]
    assert one_cycle == pytest.approx([0.04, 0.52, 1, 0.5, 0.001 / 0.7])
    for schedule in Schedule:
        assert all(0 < schedule.factor(step / 200) <= 1 for step in range(200))


def test_clipping_by_norm() -> None:
    model, _ = trained(Optimizer(5.0, Algorithm.SGD, clip_norm=0.05))
    expected = by_hand("SGD", lr=5.0, clip=lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.05))
    assert_close(model, expected)
    assert not torch.allclose(tiny.flat(expected), tiny.flat(by_hand("SGD", lr=5.0)), atol=1e-2)


def test_clipping_by_value() -> None:
    model, _ = trained(Optimizer(5.0, Algorithm.SGD, clip_value=0.01))
    expected = by_hand("SGD", lr=5.0, clip=lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01))
    assert_close(model, expected)
    assert not torch.allclose(tiny.flat(expected), tiny.flat(by_hand("SGD", lr=5.0)), atol=1e-2)


def test_clipping_by_norm_and_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    unscaled: list[Any] = []
    monkeypatch.setattr(Accelerator, "unscale_gradients", lambda *arguments: unscaled.append(arguments))

    def clip(parameters: Any) -> None:
        listed = list(parameters)
        nn.utils.clip_grad_norm_(listed, 0.05)
        nn.utils.clip_grad_value_(listed, 0.01)

    model, _ = trained(Optimizer(5.0, Algorithm.SGD, clip_norm=0.05, clip_value=0.01), steps=3)
    assert_close(model, by_hand("SGD", steps=3, lr=5.0, clip=clip))
    assert len(unscaled) == 3, "the loss scale of fp16 is taken out once a step; a second time is an error"


@pytest.mark.parametrize("micro", [1, 7, 16, 39])
def test_micro_batches_add_up_to_one_batch(micro: int) -> None:
    execution = dataclasses.replace(tiny.QUIET, micro_batch_size=micro)
    optimizer = Optimizer(0.1, Algorithm.SGD, momentum=0.9, clip_norm=0.5)
    pieces, run = trained(optimizer, execution=execution)
    whole, reference = trained(optimizer)
    assert_close(pieces, whole)
    assert run.phases[0].history == pytest.approx(reference.phases[0].history, abs=1e-6)
    assert run.phases[0].examples == reference.phases[0].examples == 4 * len(DATA)


def test_micro_batches_of_a_network_with_batch_norm_leave_no_single_example() -> None:
    data = tiny.images(per_class=5)  # 20 examples, in pieces of 19 at most
    execution = dataclasses.replace(tiny.QUIET, micro_batch_size=19)
    build = tiny.SHAPES["ResNet18"].build
    model, _ = trained(Optimizer(0.01), steps=2, execution=execution, data=data, build=build)
    assert bool(torch.isfinite(tiny.flat(model)).all())


def test_two_terms_are_summed_by_weight() -> None:
    one, other = tiny.vectors(per_class=4, seed=1), tiny.vectors(per_class=6, seed=2)
    run = Run(tiny.TASK, 0, tiny.QUIET)
    model = run.copy(network())
    terms = [Term(one, tiny.TASK.losses, 0.7), Term(other, tiny.TASK.losses, -0.2)]
    record = run.train("both", model, terms, Optimizer(0.1, Algorithm.SGD), steps=1)
    expected = network()
    loss = sum(
        weight * F.cross_entropy(expected(data.tensors[0]), data.tensors[1])
        for weight, data in ((0.7, one), (-0.2, other))
    )
    loss.backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()
    assert torch.allclose(tiny.flat(model), tiny.flat(expected), atol=1e-6)
    assert record.history == pytest.approx([loss.item()], abs=1e-6)
    assert record.examples == 16 + 24


def test_only_what_requires_a_gradient_is_trained() -> None:
    run = Run(tiny.TASK, 0, tiny.QUIET)
    model = run.copy(network())
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    run.train("part", model, [Term(DATA, tiny.TASK.losses)], Optimizer(0.1), steps=2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"2.weight", "2.bias"}


def test_batch_statistics_can_be_left_alone() -> None:
    data, build = tiny.images(per_class=4), tiny.SHAPES["small_cnn"].build
    torch.manual_seed(0)
    start = build()
    moved, kept = (
        trained(Optimizer(0.01), data=data, build=lambda: start, batch_statistics=flag)[0] for flag in (True, False)
    )
    for (name, before), after, held in zip(start.named_buffers(), moved.buffers(), kept.buffers(), strict=True):
        assert not torch.equal(before, after), name
        assert torch.equal(before, held), name


@pytest.mark.parametrize("workers", [2])
def test_workers_give_the_same_bits(workers: int) -> None:
    listed = tiny.as_tuples(DATA)
    models = [
        trained(Optimizer(0.05), batch_size=9, steps=7, data=listed, execution=execution)[0]
        for execution in (tiny.QUIET, dataclasses.replace(tiny.QUIET, workers=workers))
    ]
    assert digest_model(models[0]) == digest_model(models[1])


@pytest.mark.parametrize("shape", ["small_cnn", "all_cnn", "ResNet9"])
def test_channels_last_equals_contiguous(shape: str) -> None:
    kind = tiny.SHAPES[shape]
    data = tiny.images(per_class=8, side=16)
    torch.manual_seed(0)
    start = kind.build()
    one, other = (
        trained(Optimizer(0.01, Algorithm.SGD), data=data, build=lambda: start, steps=3, execution=execution)[0]
        for execution in (tiny.QUIET, dataclasses.replace(tiny.QUIET, channels_last=True))
    )
    weight = next(value for value in other.parameters() if value.ndim == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert (tiny.flat(one) - tiny.flat(start)).abs().max() > 1e-3
    assert torch.allclose(tiny.flat(one), tiny.flat(other), atol=1e-4)


def test_bfloat16_stays_close_and_keeps_float32_parameters() -> None:
    execution = dataclasses.replace(tiny.QUIET, precision="bf16")
    model, run = trained(Optimizer(0.1, Algorithm.SGD), steps=10, execution=execution)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model(DATA.tensors[0]).dtype == torch.float32, "the wrapper of mixed precision is gone"
    expected = by_hand("SGD", steps=10, lr=0.1)
    difference = (tiny.flat(model) - tiny.flat(expected)).abs().max()
    assert 1e-7 < difference < 0.01, "reduced precision was used, and hardly matters"
    assert run.phases[0].history[-1] < run.phases[0].history[0]


def test_a_second_precision_in_one_process_is_refused() -> None:
    Run(tiny.TASK, 0, tiny.QUIET)
    with pytest.raises(SettingError, match="use the same precision and device throughout, or start a new process"):
        Run(tiny.TASK, 0, dataclasses.replace(tiny.QUIET, precision="bf16"))


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 40])
def test_history_has_a_number_a_step(steps: int) -> None:
    _, run = trained(Optimizer(0.05), steps=steps, batch_size=10)
    record = run.phases[0]
    assert len(record.history) == record.steps == steps
    assert record.examples == steps * 10


def test_history_is_the_objective_before_each_step() -> None:
    _, run = trained(Optimizer(0.1, Algorithm.SGD), steps=3)
    expected = [
        F.cross_entropy(by_hand("SGD", steps=done, lr=0.1)(DATA.tensors[0]), DATA.tensors[1]).item()
        for done in range(3)
    ]
    assert run.phases[0].history == pytest.approx(expected, abs=1e-6)


def test_fractions_of_an_epoch_count() -> None:
    for epochs, steps in ((0.5, 2), (1, 4), (1.3, 6), (0.01, 1)):
        run = Run(tiny.TASK, 0, tiny.QUIET)
        term = Term(DATA, tiny.TASK.losses, batch_size=10)
        assert run.train("part", run.copy(network()), [term], Optimizer(0.1), epochs=epochs).steps == steps


@pytest.mark.parametrize(
    "lengths", [{}, {"steps": 0}, {"epochs": 0}, {"epochs": -1}, {"epochs": math.nan}, {"epochs": math.inf}]
)
def test_a_phase_without_steps_is_refused(lengths: dict[str, float]) -> None:
    run = Run(tiny.TASK, 0, tiny.QUIET)
    with pytest.raises(SettingError, match=r"phase 'none' has .+ steps; give `steps` or `epochs`"):
        run.train("none", network(), [Term(DATA, tiny.TASK.losses)], Optimizer(0.1), **lengths)


def test_watch_ends_a_phase() -> None:
    seen: list[int] = []

    def watch(steps: int) -> bool:
        seen.append(steps)
        return steps == 3

    model, run = trained(Optimizer(0.1, Algorithm.SGD), steps=50, watch=watch)
    assert seen == [1, 2, 3]
    assert run.phases[0].steps == len(run.phases[0].history) == 3
    assert_close(model, by_hand("SGD", steps=3, lr=0.1))


def test_watch_may_evaluate_and_change_the_mode() -> None:
    data, build = tiny.images(per_class=4), tiny.SHAPES["small_cnn"].build
    torch.manual_seed(0)
    start = build()
    models: list[nn.Module] = []
    for look in (False, True):
        run = Run(tiny.TASK, 0, tiny.QUIET)
        model = run.copy(start)

        def watch(_steps: int, model: nn.Module = model, run: Run = run, look: bool = look) -> None:
            if look:
                model.eval()
                over_batches(run, model, data, tiny.TASK.losses)

        run.train("watched", model, [Term(data, tiny.TASK.losses, batch_size=8)], Optimizer(0.01), steps=4, watch=watch)
        models.append(model)
    assert digest_model(models[0]) == digest_model(models[1])


@pytest.mark.parametrize("at", [1, 5, 20])
def test_divergence_names_the_phase_and_the_step(at: int) -> None:
    class Failing:
        steps = 0

        def __call__(self, model: nn.Module, batch: Any) -> Tensor:
            self.steps += 1
            return tiny.TASK.losses(model, batch) * (math.nan if self.steps == at else 1)

    run = Run(tiny.TASK, 0, tiny.QUIET)
    with pytest.raises(DivergedError, match=rf"objective of phase 'train' became nan at step {at}; lower the learning"):
        run.train("train", run.copy(network()), [Term(DATA, Failing())], Optimizer(0.01), steps=30)


def test_a_huge_learning_rate_diverges(mlp_problem: Problem) -> None:
    with pytest.raises(
        DivergedError, match=r"phase 'ascend' became .* at step \d+; lower the learning rate, or set cl"
    ):
        unlearn(mlp_problem, GradientAscent(1e30, epochs=20), execution=tiny.QUIET)


@dataclasses.dataclass(frozen=True)
class Overflowing(GradientAscent):
    """Its only step leaves float32."""

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        model = run.copy(problem.model)
        term = Term(problem.forget, lambda model, batch: 1e30 * problem.task.losses(model, batch))
        run.train("overflow", model, [term], Optimizer(1e30, Algorithm.SGD), steps=1)
        return model.eval()


def test_a_last_step_that_overflows_is_divergence_too(mlp_problem: Problem) -> None:
    with pytest.raises(
        DivergedError, match=r"weights became NaN or infinite in phase 'overflow' by step 1;.* lower the learning"
    ):
        unlearn(mlp_problem, Overflowing(), execution=tiny.QUIET)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_finite_and_yet_too_large_are_divergence(steps: int) -> None:
    """After its last step the model gives NaN, though no weight is NaN and no step had such an objective."""
    run, model = Run(tiny.TASK, 0, tiny.QUIET), network()
    rate = 1e30 if steps == 1 else 1e7  # the objective overflows with the step that is the last
    objective = tiny.TASK.losses if steps == 1 else _overflowing_at(steps)
    with pytest.raises(DivergedError, match=rf"objective of phase 'train' became .* after step {steps}, its last"):
        run.train("train", model, [Term(DATA, objective)], Optimizer(rate, Algorithm.ADAM), steps=steps)
    assert all(bool(torch.isfinite(each).all()) for each in model.parameters())
    assert not run.phases


def _overflowing_at(steps: int) -> Callable[[nn.Module, Any], Tensor]:
    """The usual objective, and NaN of a model that took so many steps of 1e7."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        far = next(model.parameters()).abs().max() > (steps - 0.5) * 1e7
        return tiny.TASK.losses(model, batch) * (math.nan if far else 1.0)

    return objective


def test_a_look_at_large_weights_changes_nothing() -> None:
    """Statistics of BatchNorm, mode and weights are as without it, and small weights are not looked at."""
    seen: list[bool] = []

    def objective(model: nn.Module, batch: Any) -> Tensor:
        seen.append(model.training)
        return tiny.TASK.losses(model, batch)

    models: list[nn.Module] = []
    for large in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(tiny.FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, tiny.CLASSES))
        model.register_parameter("aside", nn.Parameter(torch.tensor(1e6 if large else 0.0)))
        Run(tiny.TASK, 0, tiny.QUIET).train("train", model, [Term(DATA, objective)], Optimizer(0.01), steps=2)
        assert model.training
        del model.aside
        models.append(model)
    assert seen == [True, True, True, True, False]
    assert digest_model(models[0]) == digest_model(models[1])


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_learning_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(SettingError, match="learning_rate must be above 0"):
        Optimizer(rate)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"algorithm": "sgd"}, r"algorithm must be one of Algorithm\.ADAM, .*, not 'sgd'"),
        ({"schedule": "cosine"}, r"schedule must be one of Schedule\.CONSTANT, .*, not 'cosine'"),
        ({"algorithm": Algorithm.SGD, "nesterov": True}, "nesterov needs a momentum above 0, such as momentum=0.9"),
        ({"momentum": -0.1}, "momentum must be at least 0, not -0.1"),
        ({"momentum": 1.0}, "momentum must be below 1, not 1.0"),
        ({"weight_decay": -1e-9}, "weight_decay must be at least 0, not -1e-09"),
        ({"clip_norm": 0}, "clip_norm must be above 0, not 0"),
        ({"clip_value": -1.0}, "clip_value must be above 0, not -1.0"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_refused_when_it_is_described(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        Optimizer(0.1, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda:1"}, "device must be one of None, 'cpu', not 'cuda:1'"),
        ({"precision": "fp8"}, "precision must be one of 'no', 'fp16', 'bf16', not 'fp8'"),
        ({"micro_batch_size": 0}, "micro_batch_size must be a whole number of at least 1, not 0"),
        ({"workers": -1}, "workers must be a whole number of at least 0, not -1"),
        ({"threads": 0}, "threads must be a whole number of at least 1, not 0"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds must be at least 0, not nan"),
    ],
)
def test_an_execution_that_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Execution(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"epochs": 0}, "epochs must be above 0, not 0"), ({"batch_size": 0}, "batch_size must be a whole number of")],
)
def test_a_recipe_that_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Supervised(network, tiny.TASK, **settings)


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(SettingError, match=f"seed must be a whole number, not {seed!r}"):
        Run(tiny.TASK, seed, tiny.QUIET)


@pytest.mark.parametrize("algorithm", [Algorithm.ADAMW, Algorithm.SGD])
def test_a_recipe_trains_nothing_that_was_built_frozen(algorithm: Algorithm) -> None:
    def partly_frozen() -> nn.Module:
        model = network()
        model[0].requires_grad_(False)
        return model

    optimizer = Optimizer(0.1, algorithm, weight_decay=0.1)
    recipe = Supervised(partly_frozen, tiny.TASK, epochs=1, optimizer=optimizer, execution=tiny.QUIET)
    trained, start = recipe(tiny.vectors(), seed=0), network()
    for name, parameter in trained.named_parameters():
        frozen = name.startswith("0.")
        assert torch.equal(parameter, start.get_parameter(name)) == frozen
        assert parameter.requires_grad != frozen


@dataclasses.dataclass(frozen=True)
class WithComputed(Classification):
    """Says that the bias of the first layer is computed."""

    def fixed(self, model: nn.Module) -> tuple[str, ...]:
        del model
        return ("0.bias", "another.name")


@pytest.mark.parametrize("algorithm", [Algorithm.ADAMW, Algorithm.SGD])
def test_a_phase_leaves_what_the_task_calls_fixed(algorithm: Algorithm) -> None:
    task = WithComputed(tiny.CLASSES)
    run, model, start = Run(task, 0, tiny.QUIET), network(), network()
    term = Term(tiny.vectors(), task.losses, batch_size=16)
    for phase in ("one", "two"):
        run.train(phase, model, [term], Optimizer(0.1, algorithm, weight_decay=0.1), steps=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start.get_parameter(name)) == (name == "0.bias")
        assert parameter.requires_grad
        assert parameter.grad is None


def test_a_copy_is_trainable_even_where_the_original_is_frozen() -> None:
    original = network().requires_grad_(False)
    run = Run(tiny.TASK, 0, tiny.QUIET)
    assert all(parameter.requires_grad for parameter in run.copy(original).parameters())
    assert not any(parameter.requires_grad for parameter in original.parameters())
    assert not any(parameter.requires_grad for parameter in run.frozen(network()).parameters())


def test_threads_are_set_for_a_run_and_restored() -> None:
    seen: list[int] = []

    def build() -> nn.Module:
        seen.append(torch.get_num_threads())
        if len(seen) > 1:
            raise ValueError("within")
        return network()

    before = torch.get_num_threads()
    recipe = Supervised(build, tiny.TASK, epochs=1, execution=dataclasses.replace(tiny.QUIET, threads=before + 1))
    recipe(DATA, 0)
    with pytest.raises(ValueError, match="within"):
        recipe(DATA, 0)
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("available", "given", "expected"),
    [(True, None, ":4096:8"), (True, ":16:8", ":16:8"), (False, None, None)],
    ids=["set", "the user's own", "no device"],
)
def test_cublas_is_told_to_be_deterministic(
    available: bool, given: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given or "")
    if given is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    with reproducible():
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == expected


def test_augmentation_is_a_function_of_seed_and_step() -> None:
    def augment(batch: Any) -> Any:
        return batch | {"inputs": batch["inputs"] + torch.randn_like(batch["inputs"])}

    recipe = Supervised(network, tiny.TASK, epochs=2, batch_size=10, augment=augment, execution=tiny.QUIET)
    first, second, other = (recipe(DATA, seed) for seed in (1, 1, 2))
    plain = dataclasses.replace(recipe, augment=None)(DATA, 1)
    assert digest_model(first) == digest_model(second)
    assert len({digest_model(model) for model in (first, other, plain)}) == 3


def test_over_batches_is_in_order_and_restores_the_mode() -> None:
    run = Run(tiny.TASK, 0, tiny.QUIET)
    model = tiny.SHAPES["small_cnn"].build().train()
    data = tiny.images(per_class=5)
    before = digest_model(model)
    losses = torch.cat(over_batches(run, model, data, tiny.TASK.losses, batch_size=6))
    assert model.training
    assert digest_model(model) == before, "evaluation leaves BatchNorm alone"
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(data.tensors[0]), data.tensors[1], reduction="none")
    assert torch.allclose(losses, expected, atol=1e-6)


def test_reproducible_restores_what_it_changed() -> None:
    torch.use_deterministic_algorithms(False)
    state = torch.random.get_rng_state()

    def fail() -> None:
        with reproducible():
            assert torch.are_deterministic_algorithms_enabled()
            torch.manual_seed(0)
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu(precision: Any, mlp_problem: Problem) -> None:
    from expunge import FineTune, Stage

    method = FineTune((Stage(0.01, epochs=2),), batch_size=32)
    result = unlearn(mlp_problem, method, execution=Execution(precision=precision, progress=False))
    assert result.record.execution["device"].startswith("cuda")
    again = unlearn(mlp_problem, method, execution=Execution(precision=precision, progress=False))
    assert digest_model(result.model) == digest_model(again.model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("clip", [{"clip_norm": 1e-3}, {"clip_value": 1e-4}, {"clip_norm": 1e-3, "clip_value": 1e-4}])
def test_clipping_under_fp16(clip: dict[str, float]) -> None:
    optimizer = Optimizer(1.0, Algorithm.SGD, **clip)
    model, run = trained(optimizer, steps=8, execution=Execution(precision="fp16", progress=False))
    moved = (tiny.flat(model).cpu() - tiny.flat(network())).abs()
    assert 0 < moved.max() <= 8 * min(clip.values()) * 1.001, "gradients were clipped after the loss scale was out"
    assert run.phases[0].steps == 8
