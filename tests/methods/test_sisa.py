"""SISA: a deletion gives the bits of training afresh, touches only its shard, and goes on where it was killed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import expunge
import tiny
from attacker import confirms
from expunge import SISA, Problem, Regression, Sharded, Tier, split, unlearn
from expunge.errors import DataError, ForgetSetError, SettingError, StateError, UnknownRowError
from expunge.networks import Aggregation, ShardedEnsemble, mlp
from expunge.states import ShardState
from expunge.storage import digest_model
from expunge.training import Optimizer, Supervised

RECIPE = Supervised(
    lambda: mlp(tiny.FEATURES, tiny.CLASSES, hidden=(8,)),
    tiny.TASK,
    epochs=4,
    batch_size=16,
    optimizer=Optimizer(0.02),
    execution=tiny.QUIET,
)
SHARDED = Sharded(RECIPE, shards=3, slices=3)
DATA = tiny.vectors()


def problem(rows: list[int], sharded: Sharded = SHARDED, data: TensorDataset = DATA, seed: int = 4) -> Problem:
    model, state = sharded.train(data, seed)
    parts = split(data, indices=rows)
    return Problem(model, sharded.recipe.task, parts.forget, parts.retain, recipe=sharded, state=state)


def again(after: expunge.Unlearned, request: Problem, rows: list[int], gone: list[int]) -> Problem:
    """The next request: the model and state that are left, and what is left to retain."""
    kept = [row for row in range(len(DATA)) if row not in {*rows, *gone}]
    return dataclasses.replace(
        request, model=after.model, state=after.state, forget=Subset(DATA, rows), retain=Subset(DATA, kept)
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    return digest_model(one) == digest_model(other)


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("rows", [[5], [0, 17, 40, 99, 100]])
def test_a_deletion_gives_the_bits_of_training_afresh(rows: list[int], slices: int) -> None:
    sharded = dataclasses.replace(SHARDED, slices=slices)
    request = problem(rows, sharded)
    result = unlearn(request, SISA(), seed=99, execution=tiny.QUIET)
    afresh, state = sharded.train(request.retain, 4)
    assert same(result.model, afresh)
    assert not same(result.model, request.model)
    assert result.state.checkpoints.keys() == state.checkpoints.keys()
    for place, saved in state.checkpoints.items():
        assert all(torch.equal(value, result.state.checkpoints[place][name]) for name, value in saved.items())


def test_deletions_one_after_another_in_any_order() -> None:
    afresh = SHARDED(split(DATA, indices=[3, 50, 77]).retain, 4)
    for order in ([3, 50, 77], [77, 3, 50]):
        request, gone = problem(order[:1]), order[:1]
        result = unlearn(request, SISA(), execution=tiny.QUIET)
        for row in order[1:]:
            request = again(result, request, [row], gone)
            result = unlearn(request, SISA(), execution=tiny.QUIET)
            gone = [*gone, row]
        assert same(result.model, afresh)


def test_only_what_a_row_touched_is_trained() -> None:
    state = SHARDED.train(DATA, 4)[1]
    for row in range(12):
        request = problem([row])
        phases = unlearn(request, SISA(), execution=tiny.QUIET).record.phases
        shard, first = int(state.rows.shards[row]), int(state.rows.slices[row])
        assert [phase.name for phase in phases] == [f"shard-{shard:03d}-slice-{each:03d}" for each in range(first, 3)]


def test_places_depend_on_seed_and_position_alone() -> None:
    whole = SHARDED.train(DATA, 4)[1].rows
    other = TensorDataset(DATA.tensors[0] * 2 + 1, DATA.tensors[1].flip(0))
    assert torch.equal(SHARDED.train(other, 4)[1].rows.shards, whole.shards)
    kept = torch.arange(120)[torch.arange(120) % 7 != 0]
    part = SHARDED.train(Subset(DATA, kept.flip(0).tolist()), 4)[1].rows
    assert torch.equal(part.shards, whole.shards[kept])
    assert torch.equal(part.slices, whole.slices[kept])
    assert not torch.equal(SHARDED.train(DATA, 5)[1].rows.shards, whole.shards)
    many = Sharded(dataclasses.replace(RECIPE, epochs=0.01), shards=4)
    counts = torch.bincount(many.train(tiny.vectors(per_class=500), 1)[1].rows.shards, minlength=4)
    assert all(400 < count < 600 for count in counts.tolist())  # 500 +- 5 standard deviations of 19


def test_rows_of_one_person_lie_together() -> None:
    rows = [{"x": x, "y": y, "person": f"p-{number // 4}"} for number, (x, y) in enumerate(DATA)]
    sharded = dataclasses.replace(SHARDED, together="person")
    model, state = sharded.train(rows, 0)
    for person in range(30):
        assert len(state.rows.shards[4 * person : 4 * person + 4].unique()) == 1
        assert len(state.rows.slices[4 * person : 4 * person + 4].unique()) == 1
    parts = split(rows, column_is=("person", ["p-3"]))
    request = Problem(model, tiny.TASK, parts.forget, parts.retain, recipe=sharded, state=state)
    result = unlearn(request, SISA(), execution=tiny.QUIET)
    assert same(result.model, sharded(parts.retain, 0))
    assert {each.name: each.value for each in result.record.certificate.constants} == {
        "deleted rows": 4,
        "rows left": 116,
        "retrained shards": 1,
    }


def test_the_cost_is_that_of_the_epochs_asked_for() -> None:
    for slices in (1, 2, 5):
        sharded = Sharded(dataclasses.replace(RECIPE, epochs=12, batch_size=64), shards=2, slices=slices)
        run = expunge.Run(tiny.TASK, 0, tiny.QUIET)
        sharded.fit(tiny.vectors(per_class=100), run)
        seen = sum(phase.examples for phase in run.phases)
        assert 0.85 < seen / (12 * 400) < 1.15


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    rows, execution = [0, 17, 40, 99, 100], dataclasses.replace(tiny.QUIET, checkpoint_seconds=0)
    calls: list[int] = []

    def go(kill_at: int | None, **where: object) -> expunge.Unlearned:
        def step(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            calls.append(len(calls))
            if len(calls) == kill_at:
                raise KeyboardInterrupt
            return batch

        recipe = dataclasses.replace(SHARDED, recipe=dataclasses.replace(RECIPE, augment=step))
        return unlearn(dataclasses.replace(request, recipe=recipe), SISA(), execution=execution, **where)

    request = problem(
        rows, dataclasses.replace(SHARDED, recipe=dataclasses.replace(RECIPE, augment=lambda batch: batch))
    )
    whole = go(None)
    steps = len(calls)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        go(steps // 2, checkpoint_dir=tmp_path)
    calls.clear()
    resumed = go(None, checkpoint_dir=tmp_path, resume=True)
    assert len(calls) == steps - steps // 2 + 1, "only what was lost is trained again"
    assert same(resumed.model, whole.model)
    assert [phase.name for phase in resumed.record.phases] == [phase.name for phase in whole.record.phases]


def test_saved_and_loaded(tmp_path: Path) -> None:
    request = problem([5])
    expunge.save_state(request.state, tmp_path / "state")
    loaded = expunge.load_state(tmp_path / "state")
    assert loaded.digest() == request.state.digest()
    result = unlearn(dataclasses.replace(request, state=loaded), SISA(), execution=tiny.QUIET)
    assert same(result.model, SHARDED(request.retain, 4))
    assert result.record.guarantee is Tier.EXACT
    assert any("tell which shards lost a row" in text for text in result.record.certificate.not_covered)
    result.save(tmp_path / "run")
    for folder, there in (("state", True), ("run", False)):
        assert confirms(tmp_path / folder, DATA.tensors[0][5:6], DATA.tensors[1][5:6]) is there
    restored = expunge.Unlearned.load(tmp_path / "run", request)
    assert same(restored.model, result.model)
    assert restored.state.digest() == result.state.digest()


def test_requests_that_cannot_be_met() -> None:
    request = problem([5])
    before = request.state.digest(), digest_model(request.model)
    result = unlearn(request, SISA(), execution=tiny.QUIET)

    def refused(error: type[Exception], words: str, **changes: object) -> None:
        with pytest.raises(error, match=words):
            unlearn(dataclasses.replace(request, **changes), SISA(), execution=tiny.QUIET)

    refused(UnknownRowError, "are not, or no longer, among the", model=result.model, state=result.state)
    refused(StateError, "belongs to another model, or to this one before", state=result.state)
    stranger = TensorDataset(DATA.tensors[0][:1] + 1, DATA.tensors[1][:1])
    refused(UnknownRowError, "never in training", forget=stranger)
    refused(DataError, r"rows that the shards to be retrained consist of are not in", retain=Subset(DATA, range(6, 60)))
    refused(StateError, "was recorded with 3 shards, 3 slices", recipe=dataclasses.replace(SHARDED, slices=2))
    for build in (
        lambda: mlp(tiny.FEATURES, tiny.CLASSES, hidden=(9,)),  # would make an ensemble of two architectures
        lambda: nn.Sequential(mlp(tiny.FEATURES, tiny.CLASSES, hidden=(8,)), nn.Tanh()),
    ):
        another = dataclasses.replace(SHARDED, recipe=dataclasses.replace(RECIPE, build=build))
        refused(StateError, r"was recorded with .* members that begin as .*pass the recipe", recipe=another)
    refused(SettingError, "what a `Sharded` recipe trained, not a Supervised", recipe=RECIPE)
    with pytest.raises(ForgetSetError, match="discard it instead"):
        unlearn(
            dataclasses.replace(request, forget=DATA, retain=Subset(tiny.vectors(), [0])), SISA(), execution=tiny.QUIET
        )
    with pytest.raises(SettingError, match="shards are recorded while they are trained"):
        expunge.record(request.model, tiny.TASK, DATA, kind="shards")
    for wrong in ({"shards": 0}, {"slices": 0}, {"aggregation": "mean"}):
        with pytest.raises(SettingError):
            Sharded(RECIPE, **wrong)
    assert (request.state.digest(), digest_model(request.model)) == before


def test_a_shard_that_is_emptied_has_no_say() -> None:
    sharded = Sharded(RECIPE, shards=6)
    data = tiny.vectors(per_class=3)
    state = sharded.train(data, 0)[1]
    counts = torch.bincount(state.rows.shards, minlength=6)
    shard = int(torch.where(counts > 0, counts, 99).argmin())
    request = problem((state.rows.shards == shard).nonzero().flatten().tolist(), sharded, data, seed=0)
    result = unlearn(request, SISA(), execution=tiny.QUIET)
    assert not bool(result.model.active[shard])
    assert same(result.model, sharded(request.retain, 0))


@pytest.mark.parametrize("aggregation", Aggregation)
def test_how_members_answer_together(aggregation: Aggregation) -> None:
    torch.manual_seed(0)
    members = [mlp(tiny.FEATURES, 4) for _ in range(3)]
    ensemble = ShardedEnsemble(members, [True, True, False], aggregation)
    inputs = DATA.tensors[0][:9]
    outputs = [member(inputs) for member in members[:2]]
    expected: dict[Aggregation, Callable[[], Tensor]] = {
        Aggregation.MEAN: lambda: (sum(each.softmax(1) for each in outputs) / 2).log(),
        Aggregation.VOTE: lambda: ((sum(torch.eye(4)[each.argmax(1)] for each in outputs) + 0.25) / 3).log(),
        Aggregation.OUTPUTS: lambda: sum(outputs) / 2,
    }
    assert torch.allclose(ensemble(inputs), expected[aggregation](), atol=1e-6)


def test_a_regression_in_shards() -> None:
    inputs = DATA.tensors[0]
    data = TensorDataset(inputs, inputs[:, :2].sum(1))
    recipe = Supervised(lambda: nn.Linear(12, 1), Regression(0.5), 4, 16, Optimizer(0.05), execution=tiny.QUIET)
    request = problem([1, 2], Sharded(recipe, shards=2, slices=2, aggregation=Aggregation.OUTPUTS), data)
    result = unlearn(request, SISA(), execution=tiny.QUIET)
    assert isinstance(result.state, ShardState)
    assert same(result.model, request.recipe(request.retain, 4))


def _counted(recipe: Supervised) -> Supervised:
    return dataclasses.replace(recipe, augment=lambda batch: batch)
