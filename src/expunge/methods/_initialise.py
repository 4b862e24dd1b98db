"""Weights as they are before training."""

from collections.abc import Iterable

import torch
from torch import nn

from expunge.errors import ModelError
from expunge.training import Run, seed_globals


def reinitialise(run: Run, modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Draw the weights of these modules anew, in place, by their own `reset_parameters`, from the run's seed.

    Raises:
        ModelError: A module has weights of its own and no such function.
    """
    for name, module in modules:
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            raise ModelError(
                f"{name or 'the model'} ({type(module).__name__}) has weights of its own and no `reset_parameters` to "
                "draw them anew; give the class one"
            )
        seed_globals(run.seed, "initialise", name)
        reset()


def scrambled(run: Run, model: nn.Module) -> nn.Module:
    """A copy that knows nothing: modules drawn anew, and loose parameters with their own values in random order."""
    stranger = run.copy(model)
    for name, module in stranger.named_modules():
        if hasattr(module, "reset_parameters"):
            reinitialise(run, [(name, module)])
            continue
        for own, parameter in module.named_parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=run.generator("scramble", name, own))
            with torch.no_grad():
                parameter.copy_(parameter.flatten()[order.to(parameter.device)].reshape(parameter.shape))
    return stranger
