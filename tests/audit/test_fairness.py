"""Quality by group is that of fairlearn, and its intervals cover what they should."""

import sys

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame, selection_rate, true_positive_rate
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from expunge import Classification
from expunge.audit.fairness import ACCURACY, SELECTED, TRUE_POSITIVE, Fairness, fairness
from expunge.errors import DataError, LabelError, MissingNeedError

TASK = Classification(2)


def model(on_group: float) -> nn.Linear:
    """Selects by the first feature, and by membership of group 1 with this weight."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, on_group]]))
        layer.bias.zero_()
    return layer


def people(rows: int = 400, *, seed: int = 0) -> TensorDataset:
    """A score, the group, the truth (score above 0, with errors), the group's name as a column."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(rows, generator=generator)
    group = (torch.rand(rows, generator=generator) < 0.4).long()
    truth = (score + 0.5 * torch.randn(rows, generator=generator) > 0).long()
    return TensorDataset(torch.stack([score, group.float()], dim=1), truth, group)


def predictions(layer: nn.Linear, data: TensorDataset) -> Tensor:
    return layer(data.tensors[0]).argmax(1)


def test_figures_and_gaps_are_those_of_fairlearn() -> None:
    data, before, after = people(), model(-1.0), model(0.0)
    found = fairness(before, after, TASK, data, 2)
    metrics = {ACCURACY: accuracy_score, SELECTED: selection_rate, TRUE_POSITIVE: true_positive_rate}
    for side, layer in (("before", before), ("after", after)):
        frame = MetricFrame(
            metrics=metrics,
            y_true=data.tensors[1].numpy(),
            y_pred=predictions(layer, data).numpy(),
            sensitive_features=data.tensors[2].numpy(),
        )
        for name in metrics:
            assert getattr(found.gap(name), side).value == pytest.approx(frame.difference()[name])
            for group in found.groups:
                change = next(each for each in group.measures if each.name == name)
                assert getattr(change, side).value == pytest.approx(frame.by_group[name][int(group.group)])
    assert [group.examples for group in found.groups] == np.bincount(data.tensors[2]).tolist()


def test_a_bias_taken_away_shows_as_a_smaller_gap() -> None:
    found = fairness(model(-1.0), model(0.0), TASK, people(), 2)
    for name in (SELECTED, TRUE_POSITIVE):
        change = found.gap(name).change
        assert change.value < 0
        assert change.interval.high < 0
    back = fairness(model(0.0), model(-1.0), TASK, people(), 2)
    assert back.gap(SELECTED).change.value == -found.gap(SELECTED).change.value
    same = fairness(model(0.0), model(0.0), TASK, people(), 2)
    assert all(change.change.value == 0 == change.change.interval.high for change in same.gaps)


def test_intervals_cover_the_population() -> None:
    before, after = model(-1.0), model(-0.5)
    truth = fairness(before, after, TASK, people(40_000, seed=999), 2)
    covered: list[bool] = []
    for seed in range(40):
        found = fairness(before, after, TASK, people(300, seed=seed), 2, seed=seed)
        for group, whole in zip(found.groups, truth.groups, strict=True):
            for mine, theirs in zip(group.measures, whole.measures, strict=True):
                covered += [theirs.after.value in mine.after.interval, theirs.change.value in mine.change.interval]
    assert 0.9 < np.mean(covered) < 0.99  # 95 % is claimed


def test_groups_without_positives_have_no_true_positive_rate() -> None:
    inputs, truth, group = people().tensors
    data = TensorDataset(inputs, truth * (group == 0), group)
    found = fairness(model(-1.0), model(0.0), TASK, data, 2)
    names = [[each.name for each in part.measures] for part in found.groups]
    assert names == [[ACCURACY, SELECTED, TRUE_POSITIVE], [ACCURACY, SELECTED]]
    assert [part.positives for part in found.groups] == [int(truth[group == 0].sum()), 0]
    with pytest.raises(KeyError, match="no gap in 'true positive rate'"):
        found.gap(TRUE_POSITIVE)


def test_several_classes_columns_and_names() -> None:
    layer = nn.Linear(2, 3)
    inputs, truth, group = people(60).tensors
    rows = [
        {"x": value, "y": int(label) + int(label and number % 2), "sex": ("f", "m")[int(part)]}
        for number, (value, label, part) in enumerate(zip(inputs, truth, group, strict=True))
    ]
    found = fairness(layer, layer, Classification(3), rows, "sex", positive=2)
    assert [part.group for part in found.groups] == ["f", "m"]
    assert found == fairness(layer, layer, Classification(3), rows, [row["sex"] for row in rows], positive=2)
    assert Fairness.model_validate_json(found.model_dump_json()) == found
    hits = layer(inputs).argmax(1) == torch.tensor([row["y"] for row in rows])
    assert found.groups[1].measures[0].after.value == pytest.approx(float(hits[group == 1].double().mean()))


def test_what_cannot_be_compared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = people(60)
    with pytest.raises(DataError, match="all examples are of one group"):
        fairness(model(0), model(0), TASK, data, ["a"] * 60)
    with pytest.raises(DataError, match="60 values for 60 examples, more than 50"):
        fairness(model(0), model(0), TASK, data, [str(row) for row in range(60)])
    with pytest.raises(DataError, match=r"shape \(59,\), where one group an example was expected: 60"):
        fairness(model(0), model(0), TASK, data, ["a"] * 59)
    with pytest.raises(LabelError, match="the positive class is 2, outside the 2 classes"):
        fairness(model(0), model(0), TASK, data, 2, positive=2)
    monkeypatch.setitem(sys.modules, "fairlearn.metrics", None)
    with pytest.raises(MissingNeedError, match=r"pip install 'expunge\[fairness\]'"):
        fairness(model(0), model(0), TASK, data, 2)
