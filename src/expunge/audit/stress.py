"""What comes back when weights are rounded: suppression that hides in small differences does not survive it."""

import copy

import torch
from torch import Tensor, nn


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weight matrices and kernels are rounded to `bits` bits.

    Symmetric, to the nearest step, one scale for each output channel (the largest magnitude falls on the last step);
    vectors such as biases and normalisation weights stay as they are.

    Args:
        model: The model; it is left as it was.
        bits: From 2 to 16.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(_rounded(parameter, 2 ** (bits - 1) - 1))
    return rounded


def _rounded(weights: Tensor, steps: int) -> Tensor:
    rows = weights.flatten(1)
    scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny) / steps
    return ((rows / scale).round() * scale).reshape(weights.shape)
