"""A state of curvature: what it holds, that it forgets too, and what it refuses."""

import copy
import dataclasses
import stat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import heads
import tiny
from attacker import confirms
from expunge import Classification, load_state, record, save_state, split
from expunge.errors import (
    ConvergenceError,
    CurvatureError,
    ForgetSetError,
    ModelError,
    NonFiniteDataError,
    SavedModelError,
    SettingError,
    ShapeError,
    StateError,
    UnknownRowError,
    UnsupportedTaskError,
)
from expunge.networks import ClippedFeatures
from expunge.states import STATE_FILE, CurvatureState, HeadLoss, base, digest_state, fit_head, head_rows
from expunge.states.head import ledger_rows
from expunge.states.solving import cholesky, conjugate_gradients, require_positive_definite
from expunge.storage import digest_tensors, read_tensors, write_tensors

ROOT = Path(__file__).parents[2]
DATA = heads.data()
by_loss = pytest.mark.parametrize("loss", HeadLoss)


def recorded(loss: HeadLoss = HeadLoss.SOFTMAX, **settings: Any) -> tuple[nn.Module, CurvatureState]:
    model = heads.fitted(DATA, loss=loss)
    state = record(model, tiny.TASK, DATA, **{"l2": heads.L2, "loss": loss, **settings})
    assert isinstance(state, CurvatureState)
    return model, state


def without(model: nn.Module, state: CurvatureState, rows: Any) -> CurvatureState:
    return state.without(head_rows(model, tiny.TASK, rows, state.settings.loss), *ledger_rows(tiny.TASK, rows))


def row(inputs: Tensor, label: int = 0) -> TensorDataset:
    return TensorDataset(inputs.reshape(1, -1), torch.tensor([label]))


def dense(model: nn.Module, loss: HeadLoss, weights: Tensor) -> Tensor:
    """The data's curvature by automatic differentiation, class by class of rows: slow and obvious."""
    features, labels = (
        torch.cat([rows for rows, _ in head_rows(model, tiny.TASK, DATA, loss).chunks()]),
        DATA.tensors[1],
    )

    def total(flat: Tensor) -> Tensor:
        logits = features @ flat.T
        if loss is HeadLoss.SOFTMAX:
            return nn.functional.cross_entropy(logits, labels, reduction="sum")
        wanted = nn.functional.one_hot(labels, tiny.CLASSES).double()
        return nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")

    return torch.autograd.functional.hessian(total, weights).reshape(weights.numel(), -1)


@by_loss
def test_it_holds_gradient_and_curvature_at_the_optimum(loss: HeadLoss) -> None:
    model, state = recorded(loss)
    assert state.residual <= 1e-12
    assert state.feature_norm == pytest.approx(1.0)
    assert state.head_alone
    found = state.curvature if loss is HeadLoss.SOFTMAX else torch.block_diag(*state.curvature)
    expected = dense(model, loss, state.weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(state.weights)
    rows = head_rows(model, tiny.TASK, DATA, loss)
    product = rows.product_sum(rows.probabilities(state.weights), direction)
    torch.testing.assert_close(product.flatten(), expected @ direction.flatten(), rtol=1e-10, atol=1e-10)


@by_loss
@pytest.mark.parametrize("order", [[5, 80, 33, 2, 60], [60, 33, 5, 2, 80]])
def test_a_down_dated_state_is_the_one_recorded_on_the_rest(loss: HeadLoss, order: list[int]) -> None:
    model, state = recorded(loss)
    for index in order:
        state = without(model, state, split(DATA, indices=[index]).forget)
    rest = split(DATA, indices=order).retain
    fresh = record(model, tiny.TASK, rest, l2=heads.L2, loss=loss, tolerance=1.0)
    assert isinstance(fresh, CurvatureState)
    for name in ("weights", "gradient", "curvature"):
        torch.testing.assert_close(getattr(state, name), getattr(fresh, name), rtol=0, atol=1e-10)
    assert (len(state.rows), state.recorded) == (len(fresh.rows), len(DATA))
    step, expected = state.newton_step().step, fresh.newton_step().step
    torch.testing.assert_close(step, expected, rtol=0, atol=1e-10)


def test_it_is_saved_for_the_owner_alone_and_read_back(tmp_path: Path) -> None:
    model, state = recorded(HeadLoss.ONE_VS_REST, feature_norm=1.0)
    state = without(model, state, split(DATA, indices=[3]).forget)
    path = save_state(state, tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = load_state(tmp_path)
    assert isinstance(loaded, CurvatureState)
    assert loaded.digest() == state.digest()
    assert (loaded.settings, loaded.notes()) == (state.settings, state.notes())
    with pytest.raises(UnknownRowError):
        without(model, loaded, split(DATA, indices=[3]).forget)


def test_whoever_has_the_file_cannot_confirm_a_deleted_row(tmp_path: Path) -> None:
    model, state = recorded()
    guess = DATA.tensors[0][3:4], DATA.tensors[1][3:4]
    save_state(state, tmp_path)
    assert confirms(tmp_path, *guess), "the attack works on a row that is there"
    path = save_state(without(model, state, split(DATA, indices=[3, 8]).forget), tmp_path)
    assert not confirms(tmp_path, *guess)
    assert confirms(tmp_path, DATA.tensors[0][4:5], DATA.tensors[1][4:5])
    tensors, notes = read_tensors(path)
    digest = state.rows.digests(*guess)  # as versions before kept it
    write_tensors(path, tensors | {"rows.removed": digest}, notes)
    assert confirms(tmp_path, *guess)
    save_state(load_state(tmp_path), tmp_path)
    assert not confirms(tmp_path, *guess)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = save_state(recorded()[1], tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(SavedModelError, match="damaged"):
        load_state(tmp_path)
    path.unlink()
    with pytest.raises(SavedModelError, match=STATE_FILE):
        load_state(tmp_path)


def test_two_states_of_the_same_data_cannot_be_linked() -> None:
    first, second = recorded()[1], recorded()[1]
    assert first.digest() != second.digest()
    assert not set(first.rows.present.tolist()) & set(second.rows.present.tolist())


def test_rows_that_are_not_there_are_refused_whether_deleted_or_never_in_training() -> None:
    model, state = recorded()
    parts = split(DATA, indices=[1, 2])
    stranger = row(DATA.tensors[0][1] + 1e-6, int(DATA.tensors[1][1]))
    with pytest.raises(UnknownRowError, match="1 of the 1 forget rows are not, or no longer, among the 120 rows"):
        without(model, state, stranger)
    relabelled = row(DATA.tensors[0][1], 3 - int(DATA.tensors[1][1]))
    with pytest.raises(UnknownRowError):
        without(model, state, relabelled)
    left = without(model, state, parts.forget)
    with pytest.raises(UnknownRowError, match="1 of the 1 forget rows are not, or no longer, among the 118 rows"):
        without(model, left, split(DATA, indices=[2]).forget)
    twice = TensorDataset(DATA.tensors[0][[7, 7]], DATA.tensors[1][[7, 7]])
    with pytest.raises(UnknownRowError, match="more copies of a row"):
        without(model, state, twice)
    assert len(state.rows) == 120, "a refused request leaves the state as it was"


def test_copies_are_deleted_one_by_one() -> None:
    doubled = TensorDataset(*(torch.cat([tensor, tensor[:1]]) for tensor in DATA.tensors))
    model = heads.fitted(doubled)
    state = record(model, tiny.TASK, doubled, l2=heads.L2)
    assert isinstance(state, CurvatureState)
    first = split(doubled, indices=[0]).forget
    state = without(model, without(model, state, first), split(doubled, indices=[120]).forget)
    with pytest.raises(UnknownRowError):
        without(model, state, first)


def test_everything_cannot_be_forgotten() -> None:
    model, state = recorded()
    with pytest.raises(ForgetSetError, match="forgetting everything means discarding"):
        without(model, state, DATA)


def test_rows_of_another_width_are_refused() -> None:
    _, state = recorded()
    narrow = heads.clipped(inputs=5)
    rows = row(torch.zeros(5, dtype=torch.double))
    with pytest.raises(ShapeError, match="6 features with the constant, the state 13"):
        state.without(head_rows(narrow, tiny.TASK, rows, HeadLoss.SOFTMAX), *ledger_rows(tiny.TASK, rows))


def test_features_that_changed_since_are_noticed() -> None:
    """The same rows, but seen through another model: their curvature is not what was added."""
    model, state = recorded()
    rows = split(DATA, indices=[4]).forget
    seen = head_rows(model, tiny.TASK, rows, HeadLoss.SOFTMAX)
    repeated = dataclasses.replace(seen, features=seen.features.repeat(500, 1), labels=seen.labels.repeat(500))
    with pytest.raises(CurvatureError, match="which no rows can have"):
        state.without(repeated, *ledger_rows(tiny.TASK, rows))


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"l2": 0.02}, ConvergenceError, r"no optimum of the stated objective: its gradient has norm .* check `l2`"),
        ({"loss": "one-vs-rest"}, ConvergenceError, "no optimum"),
        ({"l2": None}, SettingError, "l2"),
        ({"l2": 0.0}, SettingError, "l2 must be above 0"),
        ({"loss": "hinge"}, SettingError, "loss must be one of softmax, one-vs-rest, not 'hinge'"),
        ({"feature_norm": 0.9}, ShapeError, r"a row has features of norm 1 .* above the 0\.9"),
        (
            {"limit_bytes": 1000},
            StateError,
            r"takes .* above limit_bytes .* is not approximated; train the head one-vs",
        ),
        ({"sketch": 3}, SettingError, "there is no setting sketch"),
        ({"kind": "curvatures"}, SettingError, "there is no kind of state 'curvatures'; there are: curvature, "),
    ],
)
def test_what_cannot_be_recorded(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"l2": heads.L2, **settings}
    if given["l2"] is None:
        del given["l2"]
    with pytest.raises(error, match=words):
        record(heads.fitted(DATA), tiny.TASK, DATA, **given)


def test_models_that_have_no_linear_head_at_their_end() -> None:
    def record_of(model: nn.Module) -> None:
        record(model, tiny.TASK, DATA, l2=heads.L2, tolerance=10.0)

    with pytest.raises(ModelError, match="something comes after it"):
        record_of(nn.Sequential(nn.Linear(tiny.FEATURES, tiny.CLASSES, dtype=torch.double), nn.Softmax(1)))
    unflatten = nn.Unflatten(1, (3, 2, 2))
    with pytest.raises(ModelError, match="convolution of size"):
        record_of(nn.Sequential(unflatten, nn.Conv2d(3, tiny.CLASSES, 2, dtype=torch.double), nn.Flatten()))
    with pytest.raises(UnsupportedTaskError, match="needs Classification"):
        record(heads.fitted(DATA), object(), DATA, l2=heads.L2)  # type: ignore[arg-type]


def test_a_row_that_is_no_number_is_refused() -> None:
    broken = TensorDataset(DATA.tensors[0].clone(), DATA.tensors[1])
    broken.tensors[0][3, 3] = torch.nan
    with pytest.raises(NonFiniteDataError):
        record(heads.fitted(DATA), tiny.TASK, broken, l2=heads.L2)


def test_layers_and_buffers_before_the_head_are_noticed() -> None:
    for before in (nn.Linear(tiny.FEATURES, 8, dtype=torch.double), nn.BatchNorm1d(tiny.FEATURES, dtype=torch.double)):
        width = 8 if isinstance(before, nn.Linear) else tiny.FEATURES
        model = nn.Sequential(before, nn.Linear(width, tiny.CLASSES, dtype=torch.double))
        state = record(heads.fitted(DATA, model=model), tiny.TASK, DATA, l2=heads.L2)
        assert isinstance(state, CurvatureState)
        assert not state.head_alone
        assert state.bias
        assert state.feature_norm > 1


class Remembering(nn.Module):
    """No parameter and no buffer, and yet it holds a mean of the training set."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = DATA.tensors[0].mean(0)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - self.mean


def test_a_layer_that_may_remember_something_is_not_a_head_alone() -> None:
    def alone(*before: nn.Module) -> bool:
        model = nn.Sequential(*before, nn.Linear(tiny.FEATURES, tiny.CLASSES, dtype=torch.double))
        state = record(heads.fitted(DATA, model=model), tiny.TASK, DATA, l2=heads.L2)
        assert isinstance(state, CurvatureState)
        return state.head_alone

    assert alone()
    assert alone(nn.Identity(), nn.Sequential(nn.Flatten()), ClippedFeatures(constant=False))
    assert not alone(Remembering())
    hooked = nn.Identity()
    hooked.register_forward_hook(lambda module, inputs, output: output - DATA.tensors[0].mean(0))
    assert not alone(hooked)


def test_training_is_not_disturbed() -> None:
    model = heads.fitted(DATA)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record(model, tiny.TASK, DATA, l2=heads.L2)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_fitting_a_head_reaches_the_optimum_that_a_library_finds() -> None:
    from sklearn.linear_model import LogisticRegression

    model, l2 = nn.Linear(tiny.FEATURES, tiny.CLASSES, bias=False, dtype=torch.double), 0.05
    found = fit_head(head_rows(model, tiny.TASK, DATA, HeadLoss.SOFTMAX), l2)
    library = LogisticRegression(C=1 / (l2 * len(DATA)), fit_intercept=False, tol=1e-10, max_iter=5000)
    library.fit(*(tensor.numpy() for tensor in DATA.tensors))
    torch.testing.assert_close(found, torch.from_numpy(library.coef_), rtol=1e-5, atol=1e-6)


def test_a_system_is_solved_to_the_stated_residual() -> None:
    _, state = recorded()
    system = state.curvature / 120 + heads.L2 * torch.eye(len(state.curvature), dtype=torch.double)
    right = torch.randn(tiny.CLASSES, tiny.FEATURES + 1, dtype=torch.double)

    def product(direction: Tensor) -> Tensor:
        return (system @ direction.flatten()).reshape(direction.shape)

    exact = torch.linalg.solve(system, right.flatten()).reshape(right.shape)
    for solution in (conjugate_gradients(product, right), cholesky(system, right)):
        assert float((solution.step - exact).norm()) <= 1e-8 * float(exact.norm())
        torch.testing.assert_close(solution.residual, product(solution.step) - right, rtol=0, atol=1e-14)
        assert float(solution.residual.norm()) <= 1e-10 * float(right.norm())
    assert require_positive_definite(product, right) == pytest.approx(heads.L2, rel=1e-2)


@by_loss
def test_a_newton_step_solves_the_system_that_is_built_whole(loss: HeadLoss) -> None:
    _, state = recorded(loss)
    blocks = state.curvature if state.curvature.ndim == 3 else state.curvature[None]
    system = torch.block_diag(*blocks) / 120 + heads.L2 * torch.eye(state.weights.numel(), dtype=torch.double)
    exact = -torch.linalg.solve(system, state.mean_gradient().flatten()).reshape(state.weights.shape)
    before = state.curvature.clone()
    solution = state.newton_step()
    assert float((solution.step - exact).norm()) <= 1e-10 * float(exact.norm())
    left = (system @ solution.step.flatten()).reshape(exact.shape) + state.mean_gradient()
    torch.testing.assert_close(solution.residual, left, rtol=0, atol=1e-14)
    assert torch.equal(state.curvature, before)


def test_a_digest_is_taken_once_and_again_after_any_write(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def counted(tensors: Any) -> str:
        taken.append(1)
        return digest_tensors(tensors)

    monkeypatch.setattr(base, "digest_tensors", counted)
    _, state = recorded()
    known = state.digest()
    assert state.digest() == known
    assert len(taken) == 1
    # a sign, the last bit, a swap and a zero, by ways that torch counts as writes and by ways that it does not
    sums, digests = state.curvature.numpy(), state.rows.present
    for write in (
        lambda: sums.__setitem__((3, 5), -sums[3, 5]),
        lambda: sums.__setitem__((2, 2), float(np.nextafter(sums[2, 2], 9.0))),
        lambda: sums.__setitem__(slice(None), sums[::-1].copy()),
        lambda: state.weights.data[0].zero_(),
        lambda: state.gradient.mul_(2),
        lambda: digests.add_(1),
        lambda: state.rows.key.numpy().__setitem__(31, state.rows.key.numpy()[31] ^ 1),
    ):
        write()
        assert state.digest() != known
        known = state.digest()
        assert known == digest_state(copy.deepcopy(state)) == dataclasses.replace(state).digest()


def test_a_digest_tells_other_shapes_types_and_odd_lengths_apart() -> None:
    @dataclasses.dataclass(frozen=True)
    class Held:
        held: Tensor
        kind: ClassVar[str] = "held"

        def digest(self) -> str:
            return digest_state(self)

        def tensors(self) -> dict[str, Tensor]:
            return {"held": self.held}

        def notes(self) -> dict[str, Any]:
            return {}

    zeros = [torch.zeros(size, dtype=kind) for size in (0, 1, 7, 8, 9) for kind in (torch.uint8, torch.int64)]
    states = [Held(tensor) for tensor in (*zeros, torch.zeros(3, 3).byte(), torch.zeros(1, dtype=torch.double))]
    assert len({state.digest() for state in states}) == len(states)
    for state in states:
        before = state.digest()
        state.held.view(-1)[-1:].add_(1)
        assert (state.digest() != before) == bool(state.held.numel())


def test_a_system_that_is_not_positive_definite_is_refused() -> None:
    values = torch.linspace(-0.1, 1, 12, dtype=torch.double)
    right = torch.randn(3, 4, dtype=torch.double)

    def product(direction: Tensor) -> Tensor:
        return (values * direction.flatten()).reshape(direction.shape)

    for attempt in (
        lambda: conjugate_gradients(product, right),
        lambda: cholesky(torch.diag(values), right),
        lambda: require_positive_definite(product, right),
    ):
        with pytest.raises(CurvatureError, match=r"not positive definite \(it has -0\.|not positive definite"):
            attempt()


def test_an_accuracy_that_cannot_be_reached_is_refused() -> None:
    scale = torch.logspace(0, 15, 8, dtype=torch.double)
    with pytest.raises(ConvergenceError, match="conjugate gradients left a residual"):
        conjugate_gradients(
            lambda v: (scale * v.flatten()).reshape(v.shape), torch.randn(2, 4, dtype=torch.double), tolerance=1e-25
        )


def test_classes_of_any_number() -> None:
    data = TensorDataset(DATA.tensors[0], (DATA.tensors[1] > 1).long())
    task = Classification(2)
    model = heads.clipped(classes=2)
    with torch.no_grad():
        model[1].weight.copy_(fit_head(head_rows(model, task, data, HeadLoss.SOFTMAX), heads.L2))
    assert isinstance(record(model, task, data, l2=heads.L2), CurvatureState)


@by_loss
def test_a_state_returns_the_row_of_a_single_deletion_as_its_documentation_says(loss: HeadLoss, tmp_path: Path) -> None:
    """What docs/guarantees.md, `NewtonRemoval` and the class say of it: should this end, they must change."""
    model, state = recorded(loss)
    gone = split(DATA, indices=[17]).forget
    save_state(without(model, state, gone), tmp_path)
    held = load_state(tmp_path)
    assert isinstance(held, CurvatureState)
    recovered = -(held.gradient + held.recorded * held.settings.l2 * held.weights)  # (classes, width), of rank one
    direction = torch.linalg.svd(recovered)[2][0]
    (row,) = next(head_rows(model, tiny.TASK, gone, loss).chunks())[0]
    assert float(torch.cosine_similarity(direction, row, dim=0).abs()) == pytest.approx(1.0, abs=1e-9)
    inputs = direction[:-1] / direction[-1]  # the constant's feature gives the length
    torch.testing.assert_close(inputs, DATA.tensors[0][17], rtol=0, atol=1e-7)
    for text in (CurvatureState.__doc__, *(ROOT.joinpath(name).read_text(encoding="utf-8") for name in WARNED)):
        assert "returns the row of a single deletion exactly" in " ".join((text or "").split())


WARNED = ("docs/guarantees.md", "docs/estimators.md", "src/expunge/problem.py", "src/expunge/methods/newton_removal.py")
