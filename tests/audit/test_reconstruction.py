"""A deleted row is recovered from two exact models, and not where a certificate's noise lies between."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import heads
import tiny
from expunge import ClosedForm, Problem, Regression, Task, record, split, unlearn
from expunge.audit.reconstruction import Reconstruction, reconstruct
from expunge.data import MapDataset
from expunge.errors import DataError, ModelError, UnsupportedTaskError
from expunge.methods import ExactRidge, NewtonRemoval
from expunge.networks import mlp
from expunge.states import HeadLoss

FEATURES = 10
PENALTY = 1.0
TASK = Regression(tolerance=1.0)


def numbers(rows: int = 200, *, seed: int = 0) -> TensorDataset:
    """Correlated features far from zero, and a target that they explain in part."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, FEATURES, generator=torch.Generator().manual_seed(77), dtype=torch.double)
    inputs = 3 + torch.randn(rows, FEATURES, generator=generator, dtype=torch.double) @ mixing
    noise = torch.randn(rows, 1, generator=generator, dtype=torch.double)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True) + 2 * noise)


def ridge(dataset: MapDataset, forget: list[int], *, bias: bool = True) -> tuple[Problem, nn.Module]:
    """A ridge regression, and what it is after an exact deletion."""
    recipe = ClosedForm(
        lambda: nn.Linear(FEATURES, 1, bias=bias, dtype=torch.double), TASK, kind="ridge", settings={"penalty": PENALTY}
    )
    model = recipe(dataset, seed=0)
    parts = split(dataset, indices=forget)
    state = record(model, TASK, dataset, kind="ridge", penalty=PENALTY)
    problem = Problem(model, TASK, parts.forget, parts.retain, state=state)
    return problem, unlearn(problem, ExactRidge(), execution=tiny.QUIET).model


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_one_row_deleted_from_ridge_is_reconstructed(bias: bool) -> None:
    data = numbers()
    for row in (3, 50, 120):
        problem, after = ridge(data, [row], bias=bias)
        found = reconstruct(problem.model, after, TASK, problem.forget, problem.retain, l2=PENALTY / 199)
        assert found.similarity > 0.9999
        assert found.succeeded
        assert found.warning is not None
        assert "can reconstruct the deleted row (cosine 1.000" in found.warning
        assert found.others_as_like <= 0.01
        assert found.standardised == bias
        assert found.rank_one == pytest.approx(1)


def test_other_rows_of_the_population_are_enough() -> None:
    data, public = numbers(), numbers(2000, seed=5)
    similarities: list[float] = []
    for row in range(0, 60, 10):
        problem, after = ridge(data, [row])
        similarities.append(reconstruct(problem.model, after, TASK, problem.forget, public, rows_left=199).similarity)
    assert tiny.interval(similarities)[0] > 0.7, similarities


@pytest.mark.parametrize("loss", list(HeadLoss))
def test_one_row_deleted_from_a_logistic_head_is_reconstructed(loss: HeadLoss) -> None:
    data = heads.data()
    for row in (4, 61):
        parts = split(data, indices=[row])
        before, after = (heads.fitted(each, loss=loss) for each in (data, parts.retain))
        found = reconstruct(before, after, tiny.TASK, parts.forget, parts.retain, loss=loss.value, l2=heads.L2)
        assert found.similarity > 0.999
        assert found.succeeded


def attacks_on_certified_pairs(epsilon: float, per_class: int) -> list[Reconstruction]:
    data = heads.data(per_class)
    model = heads.fitted(data)
    found: list[Reconstruction] = []
    for seed in range(10):
        problem = heads.problem(model, data, [seed])
        method = NewtonRemoval(epsilon=epsilon, noise="seeded")
        after = unlearn(problem, method, seed=seed, execution=tiny.QUIET).model
        found.append(reconstruct(model, after, tiny.TASK, problem.forget, problem.retain, l2=heads.L2, seed=seed))
    return found


def test_enough_noise_hides_the_row() -> None:
    found = attacks_on_certified_pairs(0.01, 30)
    _, high = tiny.interval([each.similarity - each.others for each in found])
    assert high < 0.3, "the recovered row is hardly nearer to the deleted one than to others"
    assert sum(each.succeeded for each in found) <= 1
    quiet = [each for each in found if not each.succeeded]
    assert all(each.warning is None and "did not recover" in each.sentence for each in quiet)


def test_a_certificate_does_not_hide_the_row_from_whoever_holds_both_models() -> None:
    # Noise that hides what a step leaves behind is far below what the step changes, the more so the more rows.
    found = attacks_on_certified_pairs(1.0, 200)
    assert sum(each.succeeded for each in found) >= 7
    assert all("A certificate does not cover the pair" in each.warning for each in found if each.warning)


def test_several_rows_are_reported_as_a_mixture() -> None:
    problem, after = ridge(numbers(), list(range(40)))
    found = reconstruct(problem.model, after, TASK, problem.forget, problem.retain, l2=PENALTY / 160)
    assert found.deleted == 40
    assert not found.succeeded
    assert "a deleted row" in found.sentence
    assert found.similarity < 0.95


def test_a_mixture_with_one_outlier_shows_the_outlier() -> None:
    inputs, targets = (each.clone() for each in numbers().tensors)
    targets[7] += 500
    problem, after = ridge(TensorDataset(inputs, targets), [7, 8])
    found = reconstruct(problem.model, after, TASK, problem.forget, problem.retain, l2=PENALTY / 198)
    assert found.deleted == 2
    assert found.succeeded
    assert "a mixture of the 2 deleted rows, of which one is recognisable" in found.sentence


def test_the_result_holds_no_row_and_survives_json() -> None:
    problem, after = ridge(numbers(), [3])
    found = reconstruct(problem.model, after, TASK, problem.forget, problem.retain, seed=4)
    text = found.model_dump_json()
    assert Reconstruction.model_validate_json(text) == found
    assert found == reconstruct(problem.model, after, TASK, problem.forget, problem.retain, seed=4)
    inputs, _ = tiny.tensors_of(problem.forget)
    assert not any(repr(value)[:7] in text for value in inputs.flatten().tolist())


def test_what_cannot_be_attacked_is_refused(mlp_problem: Problem) -> None:
    def attack(after: nn.Module, **changes: Task | MapDataset) -> Reconstruction:
        given = {"task": tiny.TASK, "forget": mlp_problem.forget, "reference": mlp_problem.retain, **changes}
        return reconstruct(mlp_problem.model, after, **given)

    with pytest.raises(ModelError, match="the same head"):
        attack(mlp_problem.model)
    with pytest.raises(ModelError, match="layers before the head differ"):
        attack(mlp(tiny.FEATURES, tiny.CLASSES, hidden=(16,)))
    few = tiny.vectors(per_class=2)
    with pytest.raises(DataError, match=r"there are 8 reference rows.*at least 20"):
        attack(mlp_problem.model, reference=few)

    class Strange(Task):
        collate = stack = labels_of = outputs = losses = divergence = signal = quality = None
        groups = answers = features = refit_head = None

    Strange.__abstractmethods__ = frozenset()
    with pytest.raises(UnsupportedTaskError, match="not Strange"):
        attack(mlp_problem.model, task=Strange())


def test_a_head_on_a_network_is_attacked_in_its_features(mlp_problem: Problem) -> None:
    before, after = (mlp(tiny.FEATURES, tiny.CLASSES, hidden=(16,)) for _ in range(2))
    after.load_state_dict(before.state_dict())
    with torch.no_grad():
        after[2].bias.add_(Tensor([0.1, 0.0, 0.0, -0.1]))
    found = reconstruct(before, after, tiny.TASK, mlp_problem.forget, mlp_problem.retain)
    assert (found.deleted, found.references) == (30, 90)
