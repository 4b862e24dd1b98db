"""What methods that train the last layers alone share; which layers come last is told by the order of their use."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from expunge.data import MapDataset
from expunge.errors import ModelError, SettingError
from expunge.methods.base import Method, Need, Tier
from expunge.problem import Problem
from expunge.settings import require_at_least, require_positive, require_whole
from expunge.training import Algorithm, Optimizer, Run, Term
from expunge.training.batches import in_order

Layers = list[tuple[str, nn.Module]]


@dataclass(frozen=True)
class LastLayersMethod(Method):
    """Train the last k layers on the retain set and hold the others.

    Args:
        layers: k, layers with weight matrices or kernels, counted from the end; normalisation after the first of them
            belongs to them. Default 3 (ours: about the last block and the head of a residual network, as in the code).
        learning_rate: .01 (Kurmanji et al. 2023, code).
        epochs: Passes over the retain set. Default 10 (ibid.).
        batch_size: 256 (Jia et al. 2023, code).
        weight_decay: 0 (Kurmanji et al. 2023, code), with SGD and momentum .9.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN})
    tier: ClassVar[Tier] = Tier.EMPIRICAL

    layers: int = 3
    learning_rate: float = 0.01
    epochs: float = 10
    batch_size: int = 256
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "layers", "batch_size")
        require_positive(self, "learning_rate", "epochs")
        require_at_least(self, 0, "weight_decay")

    @abstractmethod
    def prepare(self, run: Run, chosen: Layers) -> str:
        """Change the last layers before they are trained, and name the phase that trains them."""

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Prepare the last layers of a copy and train them."""
        model = run.copy(problem.model)
        chosen = last_layers(problem, run, model, self.layers)
        phase = self.prepare(run, chosen)
        _freeze_all_but(model, chosen)
        term = Term(cast(MapDataset, problem.retain), problem.task.losses, batch_size=self.batch_size)
        optimizer = Optimizer(self.learning_rate, Algorithm.SGD, momentum=0.9, weight_decay=self.weight_decay)
        run.train(phase, model, [term], optimizer, epochs=self.epochs)
        return model.requires_grad_(True).eval()


def last_layers(problem: Problem, run: Run, model: nn.Module, count: int) -> Layers:
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


def _freeze_all_but(model: nn.Module, chosen: Layers) -> None:
    """Let only the weights of these layers take a gradient."""
    model.requires_grad_(False)
    for _, module in chosen:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)


def _used(problem: Problem, run: Run, model: nn.Module) -> Layers:
    """Layers with weights of their own in the order of their first use on a retained example."""
    order: Layers = []
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
