"""Reading the inputs of examples, for every task whose input is one tensor."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from expunge.errors import DataError, ModelError, NonFiniteDataError, ShapeError

_Said = tuple[nn.Module, Tensor, Tensor]
_said: ContextVar[list[_Said] | None] = ContextVar("what a model said last", default=None)


def as_tensor(value: Any) -> Tensor:
    """A tensor from a tensor, an array, numbers, or a PIL image (channels first, in [0, 1])."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image):
        pixels = torch.from_numpy(np.asarray(value).copy())
        channels_first = pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels[None]
        return channels_first.float() / 255
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, order="C"))  # a copy: the array may be read-only
    return torch.tensor(value, dtype=torch.get_default_dtype())


def stack_inputs(inputs: list[Tensor]) -> Tensor:
    """One tensor of inputs that must agree in shape."""
    shapes = {tuple(value.shape) for value in inputs}
    if len(shapes) > 1:
        listed = ", ".join(str(shape) for shape in sorted(shapes))
        raise ShapeError(f"inputs of different shapes in one batch: {listed}; resize or pad them in the dataset")
    return torch.stack(inputs)


def require_finite_floats(inputs: Tensor) -> None:
    """Raise a `DataError` unless inputs are floats, all of them finite."""
    if not inputs.is_floating_point():
        raise DataError(
            f"inputs are {inputs.dtype}, a model needs floats; convert and scale them in the dataset, "
            "for instance `images.float() / 255`"
        )
    if not bool(torch.isfinite(inputs).all()):
        raise NonFiniteDataError("an input holds NaN or infinity; clean the dataset or drop the example")


@contextmanager
def asked_once() -> Generator[None]:
    """Within it, a model that is asked about one batch again, and again, is asked once.

    Not for readings that change the model in between, or that ask it for what it draws.
    """
    before = _said.set([])
    try:
        yield
    finally:
        _said.reset(before)


def call(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a model returns, in its own precision on the way in and in float32 at least on the way out.

    Raises:
        ShapeError: The model cannot take inputs of this shape.
    """
    said = _said.get()
    if said is None:
        return _call(model, inputs)
    if said and said[0][0] is model and said[0][1] is inputs:
        return said[0][2].clone()  # a task may change what it is given
    outputs = _call(model, inputs)
    said[:] = [(model, inputs, outputs.clone())]
    return outputs


def _call(model: nn.Module, inputs: Tensor) -> Tensor:
    try:
        result = model(inputs.to(next(model.parameters()).dtype))
    except (RuntimeError, ValueError) as error:
        if not _is_shape_complaint(error):
            raise
        raise ShapeError(
            f"the model does not accept inputs of shape {tuple(inputs.shape[1:])}: {error}; "
            "check the size and the order of axes (channels first)"
        ) from error
    outputs = cast(Tensor, result["logits"]) if isinstance(result, ModelOutput) else cast(Tensor, result)
    return outputs.float() if outputs.dtype in {torch.float16, torch.bfloat16} else outputs


def seen_by(head: nn.Module, model: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer is given in a forward pass, (batch, ...); raise a ModelError where it takes no part."""
    seen: list[Tensor] = []

    def remember(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0])

    handle = head.register_forward_pre_hook(remember)
    try:
        _call(model, inputs)
    finally:
        handle.remove()
    if not seen:
        raise ModelError("the head took no part in the forward pass; name the last layer with `head`")
    return seen[-1]


def _is_shape_complaint(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("shape", "size", "channel", "dimension"))
