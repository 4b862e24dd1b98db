"""Weights that training has broken: seen before they are kept."""

import math
from collections.abc import Callable

import torch
from torch import nn

from expunge.errors import DivergedError
from expunge.training.checkpoint import PhaseRecord


def require_finite_weights(model: nn.Module, record: PhaseRecord) -> float:
    """The largest magnitude among the weights.

    Raises:
        DivergedError: One is NaN or infinite.
    """
    weights = [each.detach() for each in model.parameters() if each.numel() and each.is_floating_point()]
    largest = [float(torch.stack(each.aminmax()).abs().amax()) for each in weights]
    if not all(math.isfinite(each) for each in largest):
        raise DivergedError(
            f"the weights became NaN or infinite in phase {record.name!r} by step {record.steps}; the checkpoint "
            "before it is kept: lower the learning rate, or set clip_norm"
        )
    return max(largest, default=0.0)


def require_sound(model: nn.Module, record: PhaseRecord, objective: Callable[[], float]) -> None:
    """Refuse a model that the last step of a phase broke, which no later objective shows.

    Weights can be finite and yet so large that whatever the model computes is NaN. Where they are large, the objective
    is measured once more, in evaluation mode, in which the model is used and its statistics stay as they are.

    Args:
        model: After the phase, the same in all processes.
        record: Of the phase.
        objective: On the examples of the last step, over all processes.

    Raises:
        DivergedError: Weights or objective are NaN or infinite.
    """
    if require_finite_weights(model, record) <= _LARGE:
        return
    modes = [(each, each.training) for each in model.modules()]
    model.eval()
    with torch.no_grad():
        found = objective()
    for module, mode in modes:
        module.training = mode
    if not math.isfinite(found):
        raise DivergedError(
            f"the objective of phase {record.name!r} became {found} after step {record.steps}, its last; lower the "
            "learning rate, or set clip_norm"
        )


# Smaller weights do not overflow float32 in a network of usual depth; a look costs no more than a forward pass.
_LARGE = 100.0
