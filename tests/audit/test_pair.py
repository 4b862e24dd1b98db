"""What an audit says of the two models of a deletion side by side."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from expunge import AuditSettings, Classification, Execution, Problem, References, Relearning, Retrain, split, unlearn
from expunge.states import HeadLoss, fit_head, head_rows
from expunge.states.head import set_head_weights

QUIET = Execution(progress=False)
SETTINGS = AuditSettings(Relearning(forget_examples=2, retain_examples=20, steps=(0, 2)), neighbours=0, bits=())
TASK = Classification(2)


def rows(count: int, seed: int) -> TensorDataset:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=random)
    return TensorDataset(torch.randn(count, 5, generator=random) + labels[:, None], labels)


def optimum(data: object, seed: int) -> nn.Module:
    """The optimum, and a little noise for oracles that differ."""
    model = nn.Sequential(nn.Linear(5, 2))
    weights = fit_head(head_rows(model, TASK, data, HeadLoss.SOFTMAX), l2=0.05)
    noise = 1e-6 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed), dtype=weights.dtype)
    set_head_weights(model[0], weights + noise)
    return model


def test_exact_deletion_is_recovered_and_the_audit_warns() -> None:
    train, holdout = rows(300, 0), rows(200, 1)
    parts = split(train, indices=[7, 8])
    problem = Problem(optimum(train, 0), TASK, parts.forget, parts.retain, holdout, recipe=optimum)
    sites = ["north", "south"] * 100
    models = [optimum(parts.retain, seed) for seed in (1, 2, 3)]
    references = References.prepare(problem, models, settings=SETTINGS, execution=QUIET, subgroups={"site": sites})

    evidence = references.compare(unlearn(problem, Retrain(), execution=QUIET))

    assert evidence.reconstruction is not None
    assert evidence.reconstruction.deleted == 2
    warnings = [evidence.reconstruction.warning] if evidence.reconstruction.succeeded else []
    assert [note for note in evidence.notes if "recover" in note] == warnings
    found = evidence.fairness["site"]
    assert [group.group for group in found.groups] == ["north", "south"]
    assert found.gap("accuracy").change.interval.low <= 0 <= found.gap("accuracy").change.interval.high


def test_a_network_that_differs_throughout_has_nothing_to_recover_from() -> None:
    train = rows(200, 0)
    parts = split(train, indices=list(range(10)))

    def network(data: object, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))

    problem = Problem(network(train, 0), TASK, parts.forget, parts.retain)
    models = [network(parts.retain, seed) for seed in (1, 2, 3)]
    references = References.prepare(problem, models, settings=SETTINGS, execution=QUIET)
    moved = Problem(problem.model, TASK, parts.forget, parts.retain, recipe=network)

    evidence = references.compare(unlearn(moved, Retrain(), seed=9, execution=QUIET))

    assert evidence.reconstruction is None
    assert evidence.fairness == {}
