"""Low-rank adapters: training a small addition to some layers instead of the layers themselves."""

import warnings
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers.pytorch_utils import Conv1D

from expunge.errors import AdapterError, MissingNeedError
from expunge.settings import require_at_least, require_below, require_positive, require_whole

_SHOWN = 8


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA adapter (Hu et al. 2021, arXiv 2106.09685); it is merged at the end, so that the result is a plain model.

    Args:
        rank: 8 (peft).
        alpha: The addition is scaled by alpha / rank. Default 16, twice the rank (Dong et al. 2024, UNDIAL, code).
        dropout: Of what goes into the adapter. Default 0 (peft).
        targets: Ends of the names of the layers that get one, such as `("c_attn", "c_proj")`; the head cannot. By
            default every linear layer but the head.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "rank")
        require_positive(self, "alpha")
        require_at_least(self, 0, "dropout")
        require_below(self, 1, "dropout")


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter inside.

    Attributes:
        model: The model itself, of the class it had, whose only trainable parameters are the adapter's.
        wrapper: The handle by which peft merges it.
        checkpointed: Whether it recomputes activations in the backward pass.
    """

    model: nn.Module
    wrapper: Any
    checkpointed: bool

    def merged(self) -> nn.Module:
        """The model, now plain: the adapter is added to its layers, and every parameter takes a gradient again."""
        plain: Any = self.wrapper.merge_and_unload()
        if self.checkpointed:  # peft made the embedding give gradients, which checkpointed blocks cannot do without
            plain.disable_input_require_grads()
        return cast(nn.Module, plain.requires_grad_(True))


def adapted(model: nn.Module, settings: LoraSettings) -> Adapted:
    """Put an adapter on a model, in place; its first draw comes from torch's global generator.

    Raises:
        AdapterError: The model has no layers of the names given, the head apart.
        MissingNeedError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingNeedError("an adapter needs peft: install it with `pip install 'expunge[language]'`") from error
    head = cast(Any, model).get_output_embeddings()
    known = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head  # which an adapter would hide from the task
    ]
    lost = [name for name in settings.targets if not any(path == name or path.endswith(f".{name}") for path in known)]
    if lost or not known:
        kinds = sorted({path.rpartition(".")[2] for path in known})[:_SHOWN]
        raise AdapterError(
            f"{type(model).__name__} has no linear layer named {', '.join(lost) or 'anything'} besides its head, which "
            f"takes no adapter; the others end in {', '.join(kinds) or 'nothing'}: name those in `targets`, or leave "
            "`targets` out for all"
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    with warnings.catch_warnings():
        # GPT-2 keeps its matrices transposed, which peft finds out by itself and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        # What peft asks of a model has another name in newer releases of transformers.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        wrapper = peft.get_peft_model(cast(Any, model), config)
        inner = cast(Any, wrapper.get_base_model())
        checkpointed = bool(inner.is_gradient_checkpointing)
    return Adapted(cast(nn.Module, inner), wrapper, checkpointed)
