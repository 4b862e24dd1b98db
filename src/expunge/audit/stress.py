"""What comes back when weights are rounded: suppression that hides in small differences does not survive it."""

import copy

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def quantised(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose weight matrices and kernels are rounded to `bits` bits.

    Symmetric, to the nearest step, one scale for each output channel (the largest magnitude falls on the last step),
    wherever a layer keeps them: linear layers and convolutions first, the `Conv1D` of transformers last, transposed
    convolutions second and by group. Vectors such as biases and normalisation weights stay as they are.

    Args:
        model: The model; it is left as it was.
        bits: From 2 to 16.
    """
    rounded, steps = copy.deepcopy(model), 2 ** (bits - 1) - 1
    own = {id(each.weight): each for each in rounded.modules() if isinstance(each, _OTHER_ORDERS)}
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(_by_channel(parameter, own.get(id(parameter)), steps))
    return rounded


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OTHER_ORDERS = (Conv1D, *_TRANSPOSED)


def _by_channel(weights: Tensor, layer: nn.Module | None, steps: int) -> Tensor:
    if isinstance(layer, _TRANSPOSED):  # (in, out of a group, kernel), the inputs of a group side by side
        return _rounded(weights.unflatten(0, (layer.groups, -1)), {0, 2}, steps).flatten(0, 1)
    return _rounded(weights, {0} if layer is None else {1}, steps)


def _rounded(weights: Tensor, channels: set[int], steps: int) -> Tensor:
    """Rounded to so many steps either way, with one scale for each place along the axes of the channels."""
    others = [axis for axis in range(weights.ndim) if axis not in channels]
    scale = weights.abs().amax(others, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny) / steps
    return (weights / scale).round() * scale
