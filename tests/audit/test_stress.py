"""Rounded weights and neighbours, against what they must be."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import words
from digits_problem import QUIET
from expunge import AuditSettings, Classification, Run
from expunge.audit.neighbours import neighbours
from expunge.audit.stress import quantised
from expunge.errors import SettingError


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_output_channel_has_its_own_steps(bits: int):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    rounded = quantised(model, bits).state_dict()

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name in ("0.weight", "3.weight"):
        for old, new in zip(before[name], rounded[name], strict=True):
            require_steps(old, new, bits)
            assert len(new.unique()) <= 2**bits - 1
    assert all(torch.equal(rounded[name], before[name]) for name in before if name not in ("0.weight", "3.weight"))


def require_steps(channel: Tensor, rounded: Tensor, bits: int) -> None:
    """One channel's weights lie on its own steps, the largest on the last, none further off than half a step."""
    step = channel.abs().max() / (2 ** (bits - 1) - 1)
    assert torch.allclose(rounded / step, (rounded / step).round(), atol=1e-4)
    assert float((rounded - channel).abs().max()) <= 0.5001 * float(step)


@pytest.mark.parametrize("bits", [4, 8])
def test_output_channels_are_where_a_layer_keeps_them(bits: int):
    """Last in the linear layers of GPT-2, second and by group where a convolution is transposed."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 6, 3, groups=2), "gpt2": words.gpt2()})
    with torch.no_grad():  # so that channels differ in size
        model["gpt2"].transformer.h[0].mlp.c_fc.weight *= torch.logspace(-2, 2, 128)
        model["up"].weight *= torch.logspace(-2, 2, 12).reshape(4, 3, 1, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    rounded = quantised(model, bits).state_dict()

    for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        name = f"gpt2.transformer.h.0.{layer}.weight"
        for old, new in zip(before[name].T, rounded[name].T, strict=True):
            require_steps(old, new, bits)
    for token in range(4):
        require_steps(*(each["gpt2.transformer.wte.weight"][token] for each in (before, rounded)), bits)
    for group in range(2):
        for channel in range(3):
            part = slice(2 * group, 2 * group + 2)
            require_steps(before["up.weight"][part, channel], rounded["up.weight"][part, channel], bits)
    assert torch.equal(rounded["gpt2.lm_head.weight"], rounded["gpt2.transformer.wte.weight"]), "tied as before"


def test_a_channel_of_zeros_stays_zero():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)

    assert not quantised(layer, 4).weight.any()


def test_neighbours_are_the_retained_examples_with_the_nearest_features():
    task = Classification(2)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2))
    retain = TensorDataset(torch.tensor([[0.0], [1.0], [5.0], [9.0], [20.0]]), torch.zeros(5, dtype=torch.long))
    forget = TensorDataset(torch.tensor([[5.5], [19.0]]), torch.ones(2, dtype=torch.long))

    near = neighbours(Run(task, execution=QUIET), model, forget, retain, 2)

    assert [float(near[index][0]) for index in range(len(near))] == [5.0, 20.0]


@pytest.mark.parametrize("bad", [{"bits": (1,)}, {"bits": (17,)}, {"neighbours": -1}, {"examples": 0}])
def test_settings_that_cannot_be_used(bad: dict[str, int]):
    with pytest.raises(SettingError, match=next(iter(bad))):
        AuditSettings(**bad)
