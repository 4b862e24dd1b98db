"""What an optimiser makes of a gradient: the factor by which each entry of it moved the weights, to first order."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from expunge.errors import ModelError, SettingError
from expunge.states.gradient_layers import Slot


class UpdateRates:
    """The factors of an optimiser's latest step.

    Adam and AdamW move a weight by η g / (√v̂ + ε) where g came in this step; what of it arrives through the momentum
    over later steps adds up to the same factor and is counted here at once. SGD with momentum μ likewise: η / (1 - μ).
    A clipped norm is part of the factor. It is measured, as the change between the backward pass and the step of that
    slot's gradient which is largest; clipping by value is not.

    Args:
        model: What is trained.
        optimizer: Adam, AdamW or SGD.
        slots: Those whose factors will be asked for.

    Raises:
        SettingError: It is an optimiser of another kind.
        ModelError: A slot's parameter is not among the optimiser's.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, slots: Sequence[Slot]) -> None:
        if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | torch.optim.SGD):
            raise SettingError(
                f"the updates of {type(optimizer).__name__} are not known, only those of Adam, AdamW and SGD; record "
                "the raw gradients alone (updates=False), or use one of these"
            )
        self.optimizer = optimizer
        self.groups: dict[nn.Parameter, Mapping[str, Any]] = {
            parameter: group for group in optimizer.param_groups for parameter in group["params"]
        }
        missing = [slot.name for slot in slots if slot.of(model) not in self.groups]
        if missing:
            raise ModelError(
                f"{len(missing)} parameters to be logged are not the optimiser's (the first is {missing[0]}); build "
                "it from this model's parameters"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            raise SettingError("the optimiser maximises; a gradient log is of training that minimises")
        parameters = {slot.of(model): None for slot in slots}
        self._watched = [parameter for parameter in parameters if parameter.requires_grad]
        self._before: dict[Tensor, Tensor] = {}
        self.clipped = 1.0

    def hooks(self) -> list[RemovableHandle]:
        """Hang in what measures clipping."""
        return [
            *(each.register_post_accumulate_grad_hook(self._note) for each in self._watched),
            self.optimizer.register_step_pre_hook(lambda *_: self._compare()),
        ]

    def of(self, parameter: nn.Parameter, rows: Tensor | None = None) -> Tensor:
        """Factors of a parameter, or of some of its rows, after the step: of its shape."""
        group, state = self.groups[parameter], self.optimizer.state[parameter]
        if isinstance(self.optimizer, torch.optim.SGD):
            momentum, dampening = group["momentum"], group["dampening"]
            shape = parameter.shape if rows is None else (len(rows), *parameter.shape[1:])
            factor = (1 - dampening) / (1 - momentum) if momentum else 1.0
            return torch.full(shape, float(group["lr"]) * factor * self.clipped, device=parameter.device)
        squares = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        if rows is not None:
            squares = squares[rows]
        correction = 1 - group["betas"][1] ** float(state["step"])
        root = (squares.float() / correction).sqrt_().add_(group["eps"])
        return root.reciprocal_().mul_(float(group["lr"]) * self.clipped)

    def _note(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._before[parameter] = parameter.grad.norm()

    def _compare(self) -> None:
        """Measure clipping; where no logged gradient differs from 0, nothing is made of it and the factor is no matter.

        Raises:
            ModelError: A logged parameter has a gradient that no backward pass gave it.
        """
        before = {each: float(norm) for each, norm in self._before.items() if each.grad is not None}
        self._before.clear()
        largest = max(before, key=lambda each: before[each], default=None)
        if largest is not None and largest.grad is not None and before[largest]:
            ratio = float(largest.grad.norm()) / before[largest]
            self.clipped = 1.0 if abs(ratio - 1) < 1e-6 else ratio
            return
        self.clipped = 1.0
        if any(each.grad is not None and bool(each.grad.any()) for each in self._watched):
            raise ModelError(
                "what the optimiser is about to use are not the gradients of a backward pass, so by how much they were "
                "clipped cannot be measured; train by `loss.backward()`, or record the raw gradients alone "
                "(updates=False)"
            )
