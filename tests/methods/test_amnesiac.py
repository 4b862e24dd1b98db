"""Amnesiac unlearning from recorded updates, and the log of them."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tiny
from attacker import confirms
from expunge import Amnesiac, Problem, split, unlearn
from expunge.errors import (
    ForgetSetError,
    MissingNeedError,
    SettingError,
    StateError,
    UnknownRowError,
)
from expunge.states import UpdateLog, load_state, log_updates, record, save_state
from expunge.storage import digest_model
from expunge.training import Algorithm, Optimizer, Supervised, seed_globals
from expunge.training.batches import Plan
from expunge.training.objective import Term
from expunge.training.seeds import derive

DATA = tiny.vectors(per_class=10)
PLAIN = Amnesiac(repair_epochs=0)


def recipe(shape: str = "mlp", batch_size: int = 8) -> Supervised:
    optimizer = Optimizer(0.1, Algorithm.SGD, momentum=0.9, weight_decay=0.01)
    build = tiny.SHAPES[shape].build
    return Supervised(build, tiny.TASK, epochs=2, batch_size=batch_size, optimizer=optimizer, execution=tiny.QUIET)


def asked(model: nn.Module, state: UpdateLog, indices: list[int]) -> Problem:
    parts = split(DATA, indices=indices)
    return Problem(model, tiny.TASK, parts.forget, parts.retain, state=state)


def by_hand(indices: list[int]) -> tuple[Tensor, Tensor]:
    """The weights at the end, and those less every step in which one of the examples took part."""
    with torch.random.fork_rng():
        seed_globals(3, "build")
        model = recipe().build().train()
    plan = Plan([Term(DATA, tiny.TASK.losses, batch_size=8)], 10, derive(3, "phase", "train"))
    stepper = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    taken = torch.zeros_like(tiny.flat(model))
    for (request,) in plan.from_step(0):
        before = tiny.flat(model)
        stepper.zero_grad()
        inputs, labels = DATA[request.positions]
        F.cross_entropy(model(inputs), labels).backward()
        stepper.step()
        if set(request.positions.tolist()) & set(indices):
            taken += tiny.flat(model) - before
    return tiny.flat(model), tiny.flat(model) - taken


@pytest.mark.parametrize("indices", [[4], [4, 17, 30]])
def test_it_subtracts_what_those_batches_did(indices: list[int]) -> None:
    model, log = log_updates(recipe(), DATA, 3)
    trained, expected = by_hand(indices)
    assert torch.allclose(tiny.flat(model), trained, atol=1e-5)
    result = unlearn(asked(model, log, indices), PLAIN, execution=tiny.QUIET)
    assert (expected - trained).abs().max() > 1e-2
    assert torch.allclose(tiny.flat(result.model), expected, atol=1e-5)
    (phase,) = result.record.phases
    assert phase.name == "subtract"
    assert 2 <= phase.steps <= 2 * len(indices), "one batch an epoch for each"
    assert all(length > 0 for length in phase.history)


@pytest.mark.parametrize("shape", ["mlp", "small_cnn"])
def test_logging_changes_no_bit(shape: str) -> None:
    data = tiny.SHAPES[shape].data()
    model, _ = log_updates(recipe(shape), data, 5, watched=[1, 2])
    assert digest_model(model) == digest_model(recipe(shape)(data, 5))


def test_only_batches_with_watched_examples_are_kept() -> None:
    model, every = log_updates(recipe(), DATA, 3)
    _, few = log_updates(recipe(), DATA, 3, watched=[30, 4])
    assert len(every.updates) == 10
    assert len(few.updates) <= 4
    one, other = (unlearn(asked(model, log, [4]), PLAIN, execution=tiny.QUIET).model for log in (every, few))
    assert digest_model(one) == digest_model(other)
    with pytest.raises(UnknownRowError):
        unlearn(asked(model, few, [5]), PLAIN, execution=tiny.QUIET)


def test_examples_in_every_batch_leave_the_model_before_training() -> None:
    model, log = log_updates(recipe(), DATA, 3)
    with torch.random.fork_rng():
        seed_globals(3, "build")
        start = recipe().build()
    result = unlearn(asked(model, log, [*range(39)]), PLAIN, execution=tiny.QUIET).model
    assert torch.allclose(tiny.flat(result), tiny.flat(start), atol=1e-5)


def test_statistics_of_batchnorm_are_not_subtracted() -> None:
    data = tiny.images(per_class=10)
    model, log = log_updates(recipe("small_cnn"), data, 3)
    parts = split(data, indices=range(0, 20))
    problem = Problem(model, tiny.TASK, parts.forget, parts.retain, state=log)
    result = unlearn(problem, PLAIN, execution=tiny.QUIET).model
    assert all(torch.equal(each, dict(result.named_buffers())[name]) for name, each in model.named_buffers())


def test_the_next_state_serves_the_next_request_and_no_step_is_taken_twice() -> None:
    model, log = log_updates(recipe(batch_size=4), DATA, 3)
    before = log.digest()
    first = unlearn(asked(model, log, [4]), PLAIN, execution=tiny.QUIET)
    assert log.digest() == before
    state = first.state
    assert isinstance(state, UpdateLog)
    with pytest.raises(StateError, match="belongs to another model, or to this one before a deletion"):
        unlearn(asked(model, state, [17]), PLAIN, execution=tiny.QUIET)
    again = dataclasses.replace(asked(first.model, state, [17]))
    second = unlearn(again, PLAIN, execution=tiny.QUIET)
    together = unlearn(asked(model, log, [4, 17]), PLAIN, execution=tiny.QUIET)
    assert torch.allclose(tiny.flat(second.model), tiny.flat(together.model), atol=1e-5)
    with pytest.raises(UnknownRowError):
        unlearn(asked(second.model, second.state, [4]), PLAIN, execution=tiny.QUIET)


def test_it_is_saved_and_restored_to_the_bit(tmp_path: Path) -> None:
    model, log = log_updates(recipe(), DATA, 3, watched=[4, 17])
    save_state(log, tmp_path)
    loaded = load_state(tmp_path)
    assert loaded.digest() == log.digest()
    one, other = (
        unlearn(asked(model, each, [17]), PLAIN, execution=tiny.QUIET).record.result_digest for each in (log, loaded)
    )
    assert one == other


def test_whoever_has_the_file_cannot_confirm_a_deleted_row(tmp_path: Path) -> None:
    model, log = log_updates(recipe(), DATA, 3)
    guess, other = ((DATA.tensors[0][[row]], DATA.tensors[1][[row]]) for row in (17, 4))
    save_state(log, tmp_path)
    assert confirms(tmp_path, *guess), "the attack works on a row that is there"
    left = unlearn(asked(model, log, [17]), PLAIN, execution=tiny.QUIET).state
    assert left is not None
    save_state(left, tmp_path)
    assert not confirms(tmp_path, *guess)
    assert confirms(tmp_path, *other)


def test_the_repair_trains_on_the_retain_set() -> None:
    model, log = log_updates(recipe(), DATA, 3)
    gains: list[float] = []
    for seed in range(4):
        problem = asked(model, log, [4, 17, 30])
        methods = (PLAIN, Amnesiac(learning_rate=0.01))
        bare, repaired = (unlearn(problem, each, seed=seed, execution=tiny.QUIET).model for each in methods)
        gains.append(tiny.accuracy(repaired, problem.retain) - tiny.accuracy(bare, problem.retain))
    assert min(gains) >= 0
    assert tiny.accuracy(repaired, problem.retain) > 0.9


def test_what_cannot_be_used_is_refused() -> None:
    model, log = log_updates(recipe(), DATA, 3)
    problem = asked(model, log, [4])
    with pytest.raises(MissingNeedError, match="Amnesiac needs retained training data"):
        unlearn(dataclasses.replace(problem, retain=None), Amnesiac(), execution=tiny.QUIET)
    unlearn(dataclasses.replace(problem, retain=None), PLAIN, execution=tiny.QUIET)
    with pytest.raises(MissingNeedError, match="Amnesiac needs what was recorded at training"):
        unlearn(dataclasses.replace(problem, state=None), PLAIN, execution=tiny.QUIET)
    with pytest.raises(SettingError, match="repair_epochs must be at least 0, not -1"):
        Amnesiac(repair_epochs=-1)
    with pytest.raises(SettingError, match="updates are recorded while a model is trained"):
        record(model, tiny.TASK, DATA, kind="updates")
    for watched in ([], [40], [-1]):
        with pytest.raises(ForgetSetError, match=r"watched must be one position or more of the dataset \(0 to 39\)"):
            log_updates(recipe(), DATA, 3, watched=watched)
