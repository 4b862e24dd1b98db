"""What is particular about a phase: who takes turns, which weights learn at which pace, what is carried over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from expunge.errors import SettingError
from expunge.training.objective import Term


@dataclass(frozen=True)
class Conduct:
    """The settings of a phase that most phases leave alone; see `Run.train`."""

    batch_statistics: bool
    passes: Sequence[int] | None
    gradient_scale: Mapping[str, Tensor]
    carry_optimizer: bool
    confidential: bool = False

    def steps(self, phase: str, terms: Sequence[Term]) -> int | None:
        """Steps of all passes, or None where terms do not take turns."""
        if self.passes is None:
            return None
        unknown = [number for number in self.passes if not 0 <= number < len(terms)]
        if unknown:
            raise SettingError(
                f"phase {phase!r} has a pass over term {unknown[0]} of {len(terms)}; number terms from 0 in `passes`"
            )
        return sum(terms[number].steps_per_epoch for number in self.passes)

    def require_whole_model(self, phase: str, *, parted: bool) -> None:
        """Raise SettingError where the model is parted among processes and this conduct looks at it whole."""
        if parted and (self.gradient_scale or self.carry_optimizer):
            raise SettingError(
                f"phase {phase!r} scales gradients weight by weight or hands its optimiser on, which FSDP cannot; "
                "launch it with plain data parallelism (accelerate launch --multi_gpu)"
            )

    def in_words(self) -> str:
        """What a checkpoint must agree with."""
        words = f"batch statistics {self.batch_statistics}"
        words += "" if self.passes is None else f", passes {list(self.passes)}"
        words += f", gradients scaled in {sorted(self.gradient_scale)}" if self.gradient_scale else ""
        return words + (", optimiser carried over" if self.carry_optimizer else "")

    def set_mode(self, model: nn.Module) -> None:
        """Training or evaluation mode; a normalisation layer that is frozen keeps its statistics in either."""
        model.train(self.batch_statistics)
        for module in model.modules():
            own = list(module.parameters(recurse=False)) if isinstance(module, _NormBase) else []
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()

    def scaled(self, model: nn.Module) -> "list[ScaledGradient]":
        """The parameters whose gradients are scaled, as they are now."""
        parameters = dict(model.named_parameters())
        for name, each in self.gradient_scale.items():
            if name not in parameters or parameters[name].shape != each.shape:
                found = tuple(parameters[name].shape) if name in parameters else "absent"
                raise SettingError(
                    f"gradient_scale has factors of shape {tuple(each.shape)} for {name!r}, which is {found} in the "
                    "model; name parameters as `named_parameters` does and give each weight one factor"
                )
        return [ScaledGradient(parameters[name], each) for name, each in self.gradient_scale.items()]


class ScaledGradient:
    """A parameter whose weights learn at different paces, some of them not at all."""

    def __init__(self, parameter: nn.Parameter, factors: Tensor) -> None:
        self.parameter = parameter
        self.factors = factors.to(parameter)
        self.still = self.factors == 0
        self.start = parameter.detach().clone()

    def apply(self) -> None:
        """Scale the gradient, before a step."""
        if self.parameter.grad is not None:
            self.parameter.grad.mul_(self.factors)

    def restore(self) -> None:
        """After a step, put back what weight decay or momentum moved of the weights that are to stay."""
        with torch.no_grad():
            self.parameter.copy_(torch.where(self.still, self.start, self.parameter))
