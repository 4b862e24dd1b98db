"""Which parameters a gradient log keeps: a slot for each use of one by a module, and patterns that name them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from expunge.errors import ModelError, SettingError

_BLOCKS = re.compile(r"block:(\d+)(?:-(\d+))?")


class Use(StrEnum):
    """What a module does with a parameter, which decides how its gradient for one example is had and kept."""

    LINEAR = "linear"  # (out, in), as nn.Linear keeps it
    TRANSPOSED = "transposed"  # (in, out), as Conv1D of transformers keeps it
    EMBEDDING = "embedding"
    BIAS = "bias"
    NORM = "norm"  # scale of nn.LayerNorm
    OTHER = "other"


@dataclass(frozen=True)
class Slot:
    """One parameter as one module uses it.

    A parameter that two modules share, as GPT-2 does with its embedding and its head, is two slots, for the two
    gradients are unlike: rows of the words that were read, and all rows through the softmax.

    Attributes:
        module: Path of the module in the model.
        parameter: Name of the parameter within the module.
        use: What the module does with it.
        shape: Of the parameter.
        role: `embedding`, `head`, `block:3` or nothing, for patterns.
    """

    module: str
    parameter: str
    use: Use
    shape: tuple[int, ...]
    role: str = ""

    @property
    def name(self) -> str:
        """Path of the parameter by way of this module."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter

    def of(self, model: nn.Module) -> nn.Parameter:
        """The parameter in a model of the same architecture.

        Raises:
            ModelError: The model has no such parameter, or one of another shape.
        """
        try:
            found = model.get_submodule(self.module).get_parameter(self.parameter)
        except AttributeError as error:
            raise ModelError(
                f"the model has no parameter {self.name}, which the gradient log speaks of; pass the model that was "
                "logged"
            ) from error
        if tuple(found.shape) != self.shape:
            raise ModelError(
                f"{self.name} has shape {tuple(found.shape)} in the model and {self.shape} in the gradient log; pass "
                "the model that was logged"
            )
        return found


def slots_of(model: nn.Module) -> list[Slot]:
    """Every slot of the parameters that take a gradient, in the model's own order."""
    head, blocks = _head(model), _blocks(model)
    slots: list[Slot] = []
    for path, module in model.named_modules():
        role = _role(path, module, head, blocks)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter.requires_grad:
                slots.append(Slot(path, name, _use(path, module, name), tuple(parameter.shape), role))
    return slots


def choose(slots: Sequence[Slot], layers: Sequence[str]) -> list[Slot]:
    """The slots that any of the patterns names, in their own order.

    Args:
        slots: To choose from.
        layers: `all`, `embedding` (inputs: tokens and positions), `head` (the last layer, apart from an embedding that
            it shares its weights with), `block:3`, `block:0-3`, or a glob over names, such as `*.mlp.*`.

    Raises:
        SettingError: A pattern names nothing.
    """
    chosen: set[int] = set()
    for pattern in layers:
        found = [number for number, slot in enumerate(slots) if _matches(slot, pattern)]
        if not found:
            raise SettingError(f"layers: nothing is called {pattern!r}; there are {_known(slots)}")
        chosen |= set(found)
    if not chosen:
        raise SettingError(f"layers is empty; name at least one of {_known(slots)}")
    return [slots[number] for number in sorted(chosen)]


def _matches(slot: Slot, pattern: str) -> bool:
    blocks = _BLOCKS.fullmatch(pattern)
    if blocks and slot.role.startswith("block:"):
        first, last = int(blocks[1]), int(blocks[2] or blocks[1])
        return first <= int(slot.role.removeprefix("block:")) <= last
    return pattern in {"all", slot.role} or fnmatchcase(slot.name, pattern)


def _known(slots: Iterable[Slot]) -> str:
    names = list(slots)
    roles = {slot.role for slot in names}
    numbers = [int(role.removeprefix("block:")) for role in roles if role.startswith("block:")]
    known = ["all", *sorted({"embedding", "head"} & roles), *([f"block:0-{max(numbers)}"] if numbers else [])]
    return f"{', '.join(known)}, and globs over names such as {names[0].name if names else 'none'}"


def _use(path: str, module: nn.Module, name: str) -> Use:
    if isinstance(module, nn.Embedding):
        if module.scale_grad_by_freq or module.max_norm is not None:
            raise ModelError(
                f"{path} is an embedding with scale_grad_by_freq or max_norm, whose gradients mix the examples of a "
                "batch; switch these off, or leave the layer out with `layers=`"
            )
        return Use.EMBEDDING
    if isinstance(module, nn.Linear):
        return Use.LINEAR if name == "weight" else Use.BIAS
    if _is_transposed(module):
        return Use.TRANSPOSED if name == "weight" else Use.BIAS
    if isinstance(module, nn.LayerNorm):
        return Use.NORM if name == "weight" else Use.BIAS
    return Use.OTHER


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is the Conv1D of transformers, which this layer does without importing."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _role(path: str, module: nn.Module, head: nn.Module | None, blocks: str | None) -> str:
    if module is head:
        return "head"
    if blocks is not None and path.startswith(f"{blocks}."):
        return f"block:{path.removeprefix(f'{blocks}.').split('.')[0]}"
    return "embedding" if isinstance(module, nn.Embedding) else ""


def _head(model: nn.Module) -> nn.Module | None:
    """The output layer: what the model calls so, else its last linear layer."""
    named: Any = getattr(model, "get_output_embeddings", None)
    found = named() if callable(named) else None
    if isinstance(found, nn.Module):
        return found
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _blocks(model: nn.Module) -> str | None:
    """Path of the list of blocks: the one that holds the most parameters."""
    sizes = {
        path: sum(parameter.numel() for parameter in module.parameters())
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
    }
    return max(sizes, key=lambda path: sizes[path]) if sizes else None
