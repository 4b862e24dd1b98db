"""How much memory training takes, and how to take less of it."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from expunge.errors import SettingError

_KEPT = ("gradient_checkpointing", "_gradient_checkpointing_func")
_HOOKS = ("_require_grads_hooks", "_require_grads_hook")


@contextmanager
def recomputing(model: nn.Module) -> Generator[None]:
    """Let a Hugging Face model recompute its blocks in the backward pass while the block of code runs.

    What blocks compute need not be kept then; the numbers are the same, dropout included. A model that does so already
    is left as it is.

    Raises:
        SettingError: The model cannot.
    """
    if not isinstance(model, PreTrainedModel) or not model.supports_gradient_checkpointing:
        raise SettingError(
            f"gradient_checkpointing needs a Hugging Face model that supports it, and {type(model).__name__} does not; "
            "leave it off, or lower micro_batch_size to save memory"
        )
    if any(vars(module).get(_KEPT[0], False) for module in model.modules()):
        yield
        return
    before = [
        (module, {name: vars(module)[name] for name in _KEPT if name in vars(module)}) for module in model.modules()
    ]
    hooked = any(vars(model).get(name) for name in _HOOKS)
    # Releases of transformers differ in the name.
    enable = getattr(model, "activation_checkpointing_enable", None) or cast(Any, model).gradient_checkpointing_enable
    # The other kind, with a backward pass inside the backward pass, has no gradient where only an adapter is trained.
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        if not hooked:  # with it transformers made the embedding's output take a gradient
            cast(Any, model).disable_input_require_grads()
            for name in _HOOKS:
                vars(model).pop(name, None)
        for module, settings in before:
            for name in _KEPT:
                vars(module).pop(name, None)
            vars(module).update(settings)


class MemoryWatch:
    """The largest memory that was seen.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process = psutil.Process()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def peak(self) -> int:
        """Bytes: at the most allocated on a GPU so far, or resident now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return int(self.process.memory_info().rss)
