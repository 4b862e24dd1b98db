"""What a state that moves with its model holds, and what three attackers get of a deleted row from it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tiny
from expunge import Classification, Problem, load_state, record, save_state, split
from expunge.methods._newton import by_state
from expunge.networks import ClippedFeatures
from expunge.states import CurvatureState, HeadLoss, HeadRows, fit_head, head_rows
from expunge.states.head import set_head_weights
from expunge.states.travelled import Travelled, rounded_up
from expunge.training import Run

L2, ROWS = 0.01, 60
by_loss = pytest.mark.parametrize("loss", HeadLoss)


@dataclasses.dataclass(frozen=True)
class Deletion:
    """Of the first row of a small training set.

    Attributes:
        before: The recorded state.
        after: The state that the deletion left.
        rows: The whole training set.
        seen: Its features, (rows, width).
    """

    before: CurvatureState
    after: CurvatureState
    rows: HeadRows
    seen: Tensor


def sample(rows: int, classes: int, seed: int, features: int = 6) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    centers = torch.randn(classes, features, generator=torch.Generator().manual_seed(99), dtype=torch.double)
    return TensorDataset(
        0.5 * centers[labels] + 0.5 * torch.randn(rows, features, generator=generator, dtype=torch.double), labels
    )


def delete(seed: int, *, rebase: bool, classes: int = 3, features: int = 6, l2: float = L2,
           loss: HeadLoss = HeadLoss.SOFTMAX) -> Deletion:  # fmt: skip
    data, task = sample(ROWS, classes, seed, features), Classification(classes)
    head = nn.Linear(features + 1, classes, bias=False, dtype=torch.double)
    model = nn.Sequential(ClippedFeatures(1.0), head)
    rows = head_rows(model, task, data, loss)
    set_head_weights(head, fit_head(rows, l2, tolerance=1e-12))
    before = record(model, task, data, l2=l2, feature_norm=1.0, loss=loss)
    problem = Problem(model, task, split(data, indices=[0]).forget, state=before)
    after = by_state(problem, Run(task, execution=tiny.QUIET), None, rebase=rebase).state
    assert isinstance(before, CurvatureState)
    assert after is not None
    return Deletion(before, after, rows, torch.cat([chunk for chunk, _ in rows.chunks()]))


def documented_attack(state: CurvatureState) -> Tensor:
    """The direction that a state whose weights stay gives away: (width,)."""
    return strongest(-(state.gradient + state.recorded * state.settings.l2 * state.weights))


def strongest(gradient: Tensor) -> Tensor:
    return torch.linalg.svd(gradient)[2][0]


def advantage(direction: Tensor, deletion: Deletion) -> float:
    """How much nearer to the deleted row than, on average, to the others of its label: cosine less cosine."""
    found = torch.cosine_similarity(direction[None], deletion.seen).abs()
    alike = deletion.rows.labels == deletion.rows.labels[0]
    alike[0] = False
    return float(found[0] - found[alike].mean())


def interval(values: list[float]) -> tuple[float, float]:
    """Of the mean, 99 %."""
    half = 2.58 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


@by_loss
def test_it_holds_the_new_weights_and_no_sum_of_gradients(loss: HeadLoss, tmp_path: Path) -> None:
    deletion = delete(0, rebase=True, loss=loss)
    stayed, moved = delete(0, rebase=False, loss=loss).after, deletion.after
    step = stayed.newton_step().step
    torch.testing.assert_close(moved.weights, stayed.weights + step, rtol=0, atol=1e-13)
    torch.testing.assert_close(moved.gradient, -(ROWS - 1) * L2 * moved.weights, rtol=0, atol=1e-13)
    torch.testing.assert_close(moved.curvature, stayed.curvature, rtol=0, atol=0)
    assert float(moved.mean_gradient().norm()) < 1e-14
    assert len(moved.rows) == ROWS - 1
    save_state(moved, tmp_path)
    loaded = load_state(tmp_path)
    assert isinstance(loaded, CurvatureState)
    assert loaded.digest() == moved.digest()
    assert loaded.travelled == moved.travelled != Travelled()
    assert dataclasses.replace(moved, travelled=Travelled()).digest() != moved.digest()


def test_what_it_keeps_of_the_way_is_rounded_up_by_less_than_a_fifth() -> None:
    deletion = delete(1, rebase=True)
    way = deletion.after.weights - deletion.before.weights
    kept = deletion.after.travelled
    assert float(way.norm()) <= kept.moved < 1.19 * float(way.norm()) + 1e-15
    along = math.sqrt(float((way.flatten() @ deletion.after.curvature) @ way.flatten()))
    assert along <= kept.spread < 1.19 * along + 1e-12
    assert kept.stray == 0, "the first deletion knows where the curvature was taken"
    for value in [kept.carried, kept.moved, kept.spread, deletion.after.residual]:
        assert 4 * math.log2(value) == pytest.approx(round(4 * math.log2(value)), abs=1e-9)


@pytest.mark.parametrize("value", [1e-300, 3.7e-9, 0.5, 2**0.25, 2**-7.75, 1.0, 1.0000001, 123.4])
def test_rounding_up_is_up_and_settles(value: float) -> None:
    found = rounded_up(value)
    assert value <= found < value * 2**0.25 * (1 + 1e-12)
    assert rounded_up(found) == found
    assert rounded_up(0.0) == 0.0


def test_the_attack_on_a_state_whose_weights_stay_is_chance_on_a_rebased_one() -> None:
    gained = {
        rebase: [advantage(documented_attack(deletion.after), deletion) for deletion in deletions]
        for rebase in (False, True)
        for deletions in [[delete(seed, rebase=rebase) for seed in range(60)]]
    }
    assert interval(gained[False])[0] > 0.25, "the row itself"
    low, high = interval(gained[True])
    assert low < 0 < high
    assert high < 0.1


def test_whoever_holds_all_rows_that_are_left_finds_the_deleted_one() -> None:
    """As docs/guarantees.md says: they and the curvature tell the weights that it was taken at, and so the step."""
    for seed in range(3):
        deletion = delete(seed, rebase=True)
        state, rows = deletion.after, deletion.rows
        left = dataclasses.replace(rows, features=rows.features[1:], labels=rows.labels[1:])

        def missed(flat: Any, left: HeadRows = left, state: CurvatureState = state) -> Any:
            weights = torch.from_numpy(flat).reshape(state.weights.shape)
            return (left.curvature_sum(weights) - state.curvature).flatten().numpy()

        fit = least_squares(missed, state.weights.flatten().numpy(), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        former = torch.from_numpy(fit.x).reshape(state.weights.shape)
        former = former - former.mean(0)  # what all classes have in common changes no probability
        torch.testing.assert_close(former, deletion.before.weights, rtol=0, atol=1e-10)
        system = state.curvature / len(left) + L2 * torch.eye(len(state.curvature), dtype=torch.double)
        pull = (system @ (state.weights - former).flatten()).reshape(former.shape) * len(left) - L2 * former
        found = torch.cosine_similarity(strongest(pull), deletion.seen[0], dim=0).abs()
        assert float(found) == pytest.approx(1.0, abs=1e-9)


def test_whoever_knows_the_distribution_learns_little_of_the_step() -> None:
    """The best linear guess from curvature and gradient, with their covariance over 20,000 rows of the same kind.

    It is right about the direction of the step more often than chance, as docs/guarantees.md says, and yet further from
    the step than no guess; of the row it tells nothing that could be seen.
    """
    classes, features, l2 = 2, 4, 0.001
    model = nn.Sequential(ClippedFeatures(1.0), nn.Linear(features + 1, classes, bias=False, dtype=torch.double))
    known = head_rows(model, Classification(classes), sample(20_000, classes, 12_345, features), HeadLoss.SOFTMAX)
    seen = torch.cat([chunk for chunk, _ in known.chunks()])
    gained: list[float] = []
    agreed: list[float] = []
    missed: list[float] = []
    for seed in range(80):
        deletion = delete(seed, rebase=True, classes=classes, features=features, l2=l2)
        state = deletion.after
        way, guess = state.weights - deletion.before.weights, guessed_way(state, seen, known.labels.double())
        system = state.curvature / len(state.rows) + l2 * torch.eye(len(state.curvature), dtype=torch.double)
        gained.append(advantage(strongest((system @ guess.flatten()).reshape(way.shape)), deletion))
        agreed.append(float(torch.cosine_similarity(guess.flatten(), way.flatten(), dim=0)))
        missed.append(float((guess - way).norm() / way.norm()))
    low, high = interval(gained)
    assert low < 0 < high
    assert high < 0.1
    assert interval(agreed)[1] < 0.4
    assert float(np.median(missed)) > 3


def guessed_way(state: CurvatureState, seen: Tensor, labels: Tensor) -> Tensor:
    """Generalised least squares for the step of a head of two classes, linear about the state's weights.

    The curvature of the rows left is that of the distribution, plus its slope times the step, plus sampling noise, of
    which the gradient, known to be that of an optimum, tells a part.

    Args:
        state: Of which weights and curvature are used.
        seen: (rows, width), rows of the same distribution.
        labels: (rows,), 0 or 1.
    """
    width, weights = seen.shape[1], state.weights
    upper = torch.triu_indices(width, width)
    chance = (seen @ weights.T).softmax(1)[:, 0]
    squares = (seen[:, :, None] * seen[:, None, :])[:, upper[0], upper[1]]
    curved, pulled = (chance * (1 - chance))[:, None] * squares, (chance - (1 - labels))[:, None] * seen
    slope = torch.einsum("n,ni,nj->ij", chance * (1 - chance) * (1 - 2 * chance), squares, seen) / len(seen)
    covariance, size = torch.cov(torch.cat([curved, pulled], dim=1).T), squares.shape[1]
    mixed, inner = covariance[:size, size:], covariance[size:, size:]
    noise = covariance[:size, :size] - mixed @ torch.linalg.solve(inner, mixed.T)
    noise += 1e-10 * torch.eye(size, dtype=torch.double)
    held = state.curvature[:width, :width][upper[0], upper[1]] / len(state.rows)
    expected = curved.mean(0) + mixed @ torch.linalg.solve(inner, -state.settings.l2 * weights[0] - pulled.mean(0))
    whitened = torch.linalg.solve(noise, slope)
    change = torch.linalg.solve(slope.T @ whitened, whitened.T @ (held - expected))  # of the logits' difference
    return torch.stack([-change / 2, change / 2])
