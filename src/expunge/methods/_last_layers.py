"""Which layers of a model come last, told by the order in which they are used."""

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from expunge.errors import ModelError, SettingError
from expunge.problem import Problem
from expunge.training import Run
from expunge.training.batches import in_order


def last_layers(problem: Problem, run: Run, model: nn.Module, count: int) -> list[tuple[str, nn.Module]]:
    """The last `count` layers with a weight matrix or kernels, and all others with weights that are used after them.

    Raises:
        SettingError: The model has no layer before them, so nothing would be left as it is.
        ModelError: One of them shares a weight with a layer before.
    """
    used = _used(problem, run, model)
    matrices = [place for place, (_, module) in enumerate(used) if _has_matrix(module)]
    if count >= len(matrices):
        raise SettingError(
            f"layers must be below the number of the model's layers with weight matrices ({len(matrices)}), not "
            f"{count}: nothing would be left as it is, for which there are FineTune and Retrain"
        )
    chosen = used[matrices[-count] :]
    names = {name for name, _ in chosen}
    inside = {parameter for _, module in chosen for parameter in module.parameters(recurse=False)}
    for name, module in model.named_modules():
        if name not in names and inside & set(module.parameters(recurse=False)):
            raise ModelError(
                f"{name} shares a weight with one of the last {count} layers, so these cannot be treated apart; "
                "choose fewer layers, or a model that ties no weights"
            )
    return chosen


def freeze_all_but(model: nn.Module, chosen: list[tuple[str, nn.Module]]) -> None:
    """Let only the weights of these layers take a gradient."""
    model.requires_grad_(False)
    for _, module in chosen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)


def _used(problem: Problem, run: Run, model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers with weights of their own in the order of their first use on a retained example."""
    order: list[tuple[str, nn.Module]] = []
    handles: list[RemovableHandle] = []

    def remember(name: str, module: nn.Module) -> None:
        if all(other is not module for _, other in order):
            order.append((name, module))

    for name, module in model.named_modules():
        if next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_pre_hook(lambda it, _, name=name: remember(name, it)))
    was_training = model.training
    model.eval()
    try:
        assert problem.retain is not None
        batch = run.to_device(next(in_order(problem.task, problem.retain, 1)))
        with torch.no_grad():
            problem.task.losses(model, batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return order


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
