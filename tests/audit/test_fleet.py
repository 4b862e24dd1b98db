"""Fleets: equal models whichever way they are trained, nothing trained twice, and bad recipes named."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import tiny
from expunge import Algorithm, Optimizer, Problem, Schedule, Supervised, split
from expunge.audit import choosing, executors
from expunge.audit.batched import Batched
from expunge.audit.choosing import FleetSettings, choose
from expunge.audit.executors import Finished, InProcess, Ray, TrainingJob
from expunge.audit.fleet import Fleet, Trained
from expunge.audit.references import Oracles
from expunge.errors import MissingNeedError, OutputError, ReferenceModelError, SettingError
from expunge.networks import mlp, small_cnn
from expunge.training import seed_globals

UNCACHED = FleetSettings("in-process", cache=False)


def recipe(**changes: Any) -> Supervised:
    return dataclasses.replace(tiny.recipe(tiny.SHAPES["mlp"], epochs=2), **changes)


def jobs(count: int = 4, examples: int = 60, *, equal: bool = True) -> list[TrainingJob]:
    data = tiny.vectors()
    chosen = [torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
    lengths = [examples if equal else examples - 7 * (number % 2) for number in range(count)]
    return [
        TrainingJob(Subset(data, order[:length].tolist()), 50 + number, f"shadow {number + 1}")
        for number, (order, length) in enumerate(zip(chosen, lengths, strict=True))
    ]


def trained(way: Any, one: Supervised, many: list[TrainingJob]) -> Trained:
    return Fleet(one, many).train(FleetSettings(way, cache=False), progress=False)


def differences(one: Trained, other: Trained) -> float:
    return max(float((tiny.flat(a) - tiny.flat(b)).abs().max()) for a, b in zip(one.models, other.models, strict=True))


def cnn_without_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))


OPTIMIZERS = {
    "sgd": Optimizer(0.05, Algorithm.SGD),
    "momentum": Optimizer(0.05, Algorithm.SGD, momentum=0.9, weight_decay=1e-3, schedule=Schedule.ONE_CYCLE),
    "nesterov": Optimizer(0.05, Algorithm.SGD, momentum=0.9, nesterov=True, schedule=Schedule.COSINE, clip_norm=0.5),
    "adam": Optimizer(0.01, weight_decay=1e-3, schedule=Schedule.COSINE),
    "adamw": Optimizer(0.01, Algorithm.ADAMW, weight_decay=1e-2, clip_value=0.01),
    "both clips": Optimizer(0.01, clip_norm=1.0, clip_value=0.05, schedule=Schedule.ONE_CYCLE),
}


def test_what_is_built_frozen_stays_so_in_many_as_one() -> None:
    def partly_frozen() -> nn.Module:
        model = mlp(tiny.FEATURES, tiny.CLASSES, hidden=(10,))
        model[0].requires_grad_(False)
        return model

    one, many = recipe(build=partly_frozen, optimizer=OPTIMIZERS["adamw"]), jobs(2)
    together, alone = trained("batched", one, many), trained("in-process", one, many)
    assert together.choice.executor == "batched"
    assert differences(together, alone) < 1e-4
    for job, model in zip(many, together.models, strict=True):
        seed_globals(job.seed, "build")
        assert torch.equal(model.get_parameter("0.weight"), partly_frozen()[0].weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("equal", [True, False], ids=["equal lengths", "two lengths"])
def test_many_as_one_equals_one_by_one(optimizer: Optimizer, equal: bool) -> None:
    one, many = recipe(optimizer=optimizer, epochs=2.5, batch_size=24), jobs(equal=equal)
    together, alone = trained("batched", one, many), trained("in-process", one, many)

    assert together.choice.executor == "batched"
    assert differences(together, alone) < 1e-4
    assert differences(Trained(alone.models[1:], (), 0, alone.choice), together_without_first(alone)) > 1e-2
    assert not any(model.training for model in together.models)


def together_without_first(alone: Trained) -> Trained:
    """The same models in another order, to see that the comparison can fail."""
    return Trained(alone.models[:-1], (), 0, alone.choice)


def test_many_as_one_equals_one_by_one_for_a_convolution_and_augmented_lists() -> None:
    def noisy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return batch | {"inputs": batch["inputs"] + 0.1 * torch.randn_like(batch["inputs"])}

    data = tiny.as_tuples(tiny.images(8))
    many = [TrainingJob(Subset(data, list(range(number, number + 20))), number) for number in range(3)]
    one = recipe(build=cnn_without_batchnorm, augment=noisy, batch_size=8)

    together = trained("batched", one, many)

    assert together.choice.executor == "batched"
    assert differences(together, trained("in-process", one, many)) < 1e-4
    assert differences(together, trained("in-process", dataclasses.replace(one, augment=None), many)) > 1e-4


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(12, 4, (8,))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.network(inputs)


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(12, 4, (8,))

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.network(inputs)
        return logits if logits.sum() > 0 else 2 * logits


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"build": lambda: small_cnn(3, 4, width=4)}, "BatchNorm2d"),
        ({"build": lambda: nn.Sequential(nn.Dropout(0.5), mlp(12, 4))}, "dropout"),
        ({"build": Counting}, "buffers"),
        ({"build": Choosy}, "depends on values"),
        ({"execution": dataclasses.replace(tiny.QUIET, micro_batch_size=8)}, "micro_batch_size"),
        ({"execution": dataclasses.replace(tiny.QUIET, channels_last=True)}, "memory format"),
        ({"execution": dataclasses.replace(tiny.QUIET, workers=1)}, "background"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_batched_is_trained_one_by_one_with_a_reason(changes: dict[str, Any], reason: str) -> None:
    many = jobs(2)
    if reason == "BatchNorm2d":
        many = [TrainingJob(tiny.images(4), seed) for seed in range(2)]
    result = trained("batched", recipe(epochs=1, **changes), many)

    assert result.choice.executor == "in-process"
    assert reason in result.choice.reason


def test_a_recipe_derived_from_supervised_is_not_batched() -> None:
    class Derived(Supervised):
        def fit(self, dataset: Any, run: Any) -> nn.Module:
            model = super().fit(dataset, run)
            with torch.no_grad():
                model[-1].bias += 1
            return model

    derived = Derived(**{field.name: getattr(recipe(), field.name) for field in dataclasses.fields(Supervised)})
    many = jobs(2)
    assert "only a Supervised" in trained("batched", derived, many).choice.reason
    assert differences(trained("batched", derived, many), trained("batched", recipe(), many)) > 0.5


def test_one_that_diverges_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    many = jobs(3)
    broken = tiny.vectors(15)
    broken.tensors[0][7] = 1e30
    many.insert(1, TrainingJob(broken, 9, "the broken one"))
    one = recipe(optimizer=Optimizer(0.05, Algorithm.SGD))

    with pytest.raises(ReferenceModelError, match="the broken one with DivergedError"):
        Fleet(one, many).train(FleetSettings("batched", cache=tmp_path), progress=False)

    again = Fleet(one, [many[0], *many[2:]]).train(FleetSettings("batched", cache=tmp_path), progress=False)
    assert (again.cached, again.choice.executor) == (3, "none")


def test_a_second_fleet_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FleetSettings("in-process", cache=tmp_path)
    first = Fleet(recipe(), jobs()).train(settings, progress=False)

    def train(*_: Any) -> Iterator[Finished]:  # a generator, as the real one is: nothing runs before it is asked
        pytest.fail("trained again")
        yield

    monkeypatch.setattr(InProcess, "train", train)
    second = Fleet(recipe(), jobs()).train(FleetSettings(cache=tmp_path), progress=False)

    assert (first.cached, second.cached, second.choice.executor) == (0, 4, "none")
    assert differences(first, second) == 0
    assert second.seconds == first.seconds
    assert not any(model.training for model in second.models)


def test_only_what_is_missing_is_trained(tmp_path: Path) -> None:
    settings = FleetSettings("in-process", cache=tmp_path)
    Fleet(recipe(), jobs(3)).train(settings, progress=False)

    def cached(one: Supervised, many: list[TrainingJob]) -> int:
        return Fleet(one, many).train(settings, progress=False).cached

    assert cached(recipe(), jobs(5)) == 3
    assert cached(recipe(optimizer=Optimizer(0.011)), jobs(2)) == 0
    assert cached(recipe(), [dataclasses.replace(job, seed=job.seed + 100) for job in jobs(2)]) == 0
    assert cached(recipe(), jobs(2, examples=59)) == 0
    quick = dataclasses.replace(tiny.QUIET, checkpoint_seconds=1.0)
    assert cached(recipe(execution=quick), jobs(2)) == 2


def test_a_damaged_entry_is_trained_again(tmp_path: Path) -> None:
    settings = FleetSettings("in-process", cache=tmp_path)
    first = Fleet(recipe(), jobs(2)).train(settings, progress=False)
    entry = next((tmp_path / "models").iterdir())
    entry.write_bytes(entry.read_bytes()[:-8])

    with pytest.warns(UserWarning, match="discarded"):
        second = Fleet(recipe(), jobs(2)).train(settings, progress=False)

    assert second.cached == 1
    assert differences(first, second) == 0


def function_recipe(dataset: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = mlp(12, 4, (8,))
    inputs = torch.stack([dataset[index][0] for index in range(len(dataset))])
    with torch.no_grad():
        model[0].bias.copy_(inputs.mean() + model[0].bias)
    return model


def test_a_function_is_cached_where_a_template_gives_the_network(tmp_path: Path) -> None:
    settings = FleetSettings("in-process", cache=tmp_path)
    template = mlp(12, 4, (8,))
    first = Fleet(function_recipe, jobs(2), template=template).train(settings, progress=False)
    second = Fleet(function_recipe, jobs(2), template=template).train(settings, progress=False)
    longer = Fleet(function_recipe, jobs(2), template=nn.Sequential(*template, nn.ReLU()))
    with pytest.warns(UserWarning, match="another network than the model that they would be read into") as told:
        other = longer.train(settings, progress=False)

    assert (len(told), len(other.notes)) == (1, 1)
    assert (first.cached, second.cached, other.cached) == (0, 2, 0)
    assert differences(first, second) == 0


def test_without_a_certain_identity_nothing_is_cached_and_that_is_said(tmp_path: Path) -> None:
    draws = torch.Generator()

    def build() -> nn.Module:
        draws.get_state()
        return mlp(12, 4, (8,))

    uncertain = recipe(build=build)
    with pytest.warns(UserWarning, match=r"not cached.*Generator"):
        result = Fleet(uncertain, jobs(2)).train(FleetSettings("in-process", cache=tmp_path), progress=False)
    assert "not cached" in result.notes[0]
    assert not (tmp_path / "models").exists()
    quiet = Fleet(uncertain, jobs(2)).train(FleetSettings("in-process"), progress=False)
    assert "not cached" in quiet.notes[0], "by default a note, and no warning"


def test_a_cache_that_cannot_be_written_stops_nobody_who_did_not_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = Fleet(recipe(), jobs(2)).train(FleetSettings("in-process"), progress=False)
    assert "cannot write" in result.notes[0]
    with pytest.raises(OutputError, match="choose another folder"):
        Fleet(recipe(), jobs(2)).train(FleetSettings("in-process", cache=True), progress=False)


def test_what_was_finished_stays_cached_when_the_recipe_throws(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Fragile(tiny.Classification):
        bad: float = 0.0

        def losses(self, model: nn.Module, batch: Any) -> Tensor:
            if self.bad and float(batch["inputs"].max()) > self.bad:
                raise ValueError("a secret of the data")
            return super().losses(model, batch)

    many = jobs(3)
    odd = tiny.vectors(15)
    odd.tensors[0][0] = 1000.0
    fragile = recipe(task=Fragile(tiny.CLASSES, bad=500.0))
    many.insert(2, TrainingJob(odd, 1, "the odd one"))

    with pytest.raises(ReferenceModelError, match="the odd one with ValueError") as caught:
        Fleet(fragile, many).train(FleetSettings("in-process", cache=tmp_path), progress=False)

    assert "secret" not in str(caught.value)
    assert len(list((tmp_path / "models").iterdir())) == 2


def test_a_recipe_that_ignores_its_seed_or_its_data_is_named() -> None:
    def seedless(dataset: Any, seed: int) -> nn.Module:
        return function_recipe(dataset, 0)

    def dataless(dataset: Any, seed: int) -> nn.Module:
        return function_recipe(tiny.vectors(), seed)

    data = tiny.vectors()
    first, second = Subset(data, range(10)), Subset(data, range(20))
    with pytest.raises(ReferenceModelError, match="ignores its seed, so"):
        Fleet(seedless, [TrainingJob(data, 1), TrainingJob(data, 2)]).train(UNCACHED, progress=False)
    with pytest.raises(ReferenceModelError, match="ignores its data, so"):
        Fleet(dataless, [TrainingJob(first, 1), TrainingJob(second, 1)]).train(UNCACHED, progress=False)
    with pytest.raises(ReferenceModelError, match="its seed and its data"):
        Fleet(lambda d, s: dataless(d, 0), [TrainingJob(first, 1), TrainingJob(second, 2)]).train(
            UNCACHED, progress=False
        )
    same = Fleet(function_recipe, [TrainingJob(first, 1), TrainingJob(Subset(data, range(10)), 1)])
    assert len(same.train(UNCACHED, progress=False).models) == 2


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(ReferenceModelError, match="returned a int, not a torch module"):
        Fleet(lambda _, seed: seed, jobs(2)).train(UNCACHED, progress=False)  # type: ignore[arg-type, return-value]


def test_oracles_of_a_recipe_that_ignores_its_data_are_refused() -> None:
    parts = split(tiny.vectors(), classes=[0])

    def problem(one: Any) -> Problem:
        return Problem(mlp(12, 4, (8,)), tiny.TASK, parts.forget, parts.retain, classes=(0,), recipe=one)

    with pytest.raises(ReferenceModelError, match="ignores its data"):
        Oracles.train(
            problem(lambda _, seed: function_recipe(tiny.vectors(), seed)), 2, 0, progress=False, settings=UNCACHED
        )
    assert Oracles.train(problem(function_recipe), 2, 0, progress=False, settings=UNCACHED).notes == ()


def one_finished_and_one_under_way(folder: Path) -> bool:
    finished = {path.stem for path in folder.glob("models/*.safetensors")}
    return bool(finished) and any(path.parent.name not in finished for path in folder.glob("under-way/*/*.safetensors"))


def train_slowly(folder: str) -> None:
    torch.set_num_threads(1)
    Fleet(slow(), jobs(3)).train(FleetSettings("in-process", cache=folder), progress=False)


def slow() -> Supervised:
    execution = dataclasses.replace(tiny.QUIET, checkpoint_seconds=0.0)
    return recipe(epochs=30, task=SlowTask(tiny.CLASSES), execution=execution)


@dataclasses.dataclass(frozen=True)
class SlowTask(tiny.Classification):
    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        sleep(0.005)
        return super().outputs(model, batch)


def test_a_killed_fleet_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = multiprocessing.get_context("spawn").Process(target=train_slowly, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 60
    while not one_finished_and_one_under_way(tmp_path):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    finished = len(list(tmp_path.glob("models/*.safetensors")))
    assert finished < 3
    steps: list[int] = []
    plain = Supervised.fit

    def watched(self: Supervised, dataset: Any, run: Any) -> nn.Module:
        if run.checkpoints is not None:
            steps.append(len(list(run.checkpoints.path.glob("*.safetensors"))))
        return plain(self, dataset, run)

    monkeypatch.setattr(Supervised, "fit", watched)
    result = Fleet(slow(), jobs(3)).train(FleetSettings("in-process", cache=tmp_path), progress=False)

    assert result.cached == finished
    assert steps == [1] + [0] * (2 - finished), "the one under way has its checkpoint"
    assert differences(result, trained("in-process", slow(), jobs(3))) == 0
    assert not list(tmp_path.glob("under-way/*"))


@pytest.mark.slow
def test_processes_train_the_same_models() -> None:
    settings = FleetSettings("processes", cache=False, workers=2)
    result = Fleet(recipe(), jobs(3)).train(settings, progress=False)

    assert result.choice.executor == "processes"
    assert differences(result, trained("in-process", recipe(), jobs(3))) < 1e-6

    def broken(dataset: Any, seed: int) -> nn.Module:
        raise ValueError("a secret of the data")

    with pytest.raises(ReferenceModelError, match=r"shadow . with ValueError") as caught:
        Fleet(broken, jobs(2)).train(settings, progress=False)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Ray itself does wrong
def test_ray_trains_the_same_models() -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        result = Fleet(recipe(), jobs(3)).train(FleetSettings("ray", cache=False), progress=False)
        assert ray.is_initialized(), "a cluster of the user's stays up"
    finally:
        ray.shutdown()

    assert result.choice.executor == "ray"
    assert differences(result, trained("in-process", recipe(), jobs(3))) < 1e-6


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(executors.importlib, "import_module", absent)
    with pytest.raises(MissingNeedError, match=r"pip install 'expunge\[ray\]'"):
        list(Ray().train(recipe(), jobs(1), lambda _: None))


def test_what_cannot_be_sent_is_refused_with_the_remedy() -> None:
    lock = threading.Lock()

    def holding(dataset: Any, seed: int) -> nn.Module:
        with lock:
            return function_recipe(dataset, seed)

    for name in ("processes", "ray"):
        with pytest.raises(SettingError, match="when it is called, or choose the executor in-process"):
            trained(name, holding, jobs(2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"executor": "threads"}, {"workers": 0}, {"gpus_per_model": -1}, {"models_as_one": 0}],
    ids=lambda value: next(iter(value)),
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        FleetSettings(**settings)


def test_a_trial_takes_the_faster_way_and_keeps_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    many, one = jobs(8, 100), recipe(epochs=100)

    def choice(alone: float, together: float) -> Any:
        seconds = {"in-process": alone, "batched": together}
        monkeypatch.setattr(choosing, "_seconds_a_step", lambda executor, *_: seconds[executor.name])
        return choose(one, many, FleetSettings())[1]

    steps = 100 * 4
    faster, slower = choice(0.001, 0.004), choice(0.001, 0.0079)
    assert faster.executor == "batched"
    assert faster.expected_seconds == pytest.approx({"in-process": 8 * steps * 0.001, "batched": steps * 0.004})
    assert faster.seconds_each == pytest.approx(steps * 0.001)
    assert slower.executor == "in-process", "a gain that small may be noise"


def test_a_trial_that_fails_decides_nothing() -> None:
    diverging = recipe(epochs=100, optimizer=Optimizer(1e30, Algorithm.SGD))
    assert choose(diverging, jobs(8, 100), FleetSettings())[1].reason == "a trial of a few steps failed"


def test_a_trial_measures(tmp_path: Path) -> None:
    result = Fleet(recipe(epochs=40), jobs(6, 100)).train(FleetSettings(cache=tmp_path), progress=False)
    assert set(result.choice.expected_seconds) == {"in-process", "batched"}
    assert all(seconds > 0 for seconds in result.choice.expected_seconds.values())
    assert result.choice.executor in {"in-process", "batched"}
    assert all(seconds is not None for seconds in result.seconds)


def test_no_trial_where_little_is_to_be_trained_or_nothing_can_be_tried() -> None:
    assert "too little" in trained("auto", recipe(), jobs(2)).choice.reason
    assert "function of its own" in trained("auto", function_recipe, jobs(2)).choice.reason  # type: ignore[arg-type]


def test_several_processes_that_train_together_train_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose(recipe(), jobs(2), FleetSettings())[1].executor == "in-process"
    with pytest.raises(SettingError, match="one of 2 that train together"):
        choose(recipe(), jobs(2), FleetSettings("batched"))


def test_groups_are_even_and_of_one_length() -> None:
    many = jobs(5, 20, equal=False)
    seen = [result.number for result in Batched(models=2).train(recipe(), many, lambda _: None)]
    assert sorted(seen) == list(range(5))
