"""Gradients of single examples out of one ordinary backward pass, by hooks on the layers that hold parameters.

For a linear layer the gradient of one example is a product of what went in and the gradient of what came out
(Goodfellow 2015, arXiv 1510.01799), so nothing needs computing for it: the two factors are kept, or multiplied where
that is smaller.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from expunge.errors import ModelError
from expunge.states.gradient_layers import Slot, Use

_LINEAR = (Use.LINEAR, Use.TRANSPOSED)
# Factors are there already, a product costs as much as the weight's own gradient: worth half as much room again.
_ROOM_FOR_TIME = 1.5


@dataclass(frozen=True)
class Factors:
    """The gradient of a linear layer as a product.

    Attributes:
        inputs: (positions, in).
        outputs: (positions, out) gradient of what came out.
        transposed: Whether the layer keeps its weight as (in, out).
    """

    inputs: Tensor
    outputs: Tensor
    transposed: bool

    def to(self, device: torch.device) -> "Factors":
        """The same on a device."""
        return Factors(self.inputs.to(device), self.outputs.to(device), self.transposed)

    def dense(self) -> Tensor:
        """The gradient itself."""
        first, second = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return first.T @ second

    def dot(self, other: Tensor) -> Tensor:
        """Scalar product with a dense tensor, without multiplying the factors out."""
        matrix = other if self.transposed else other.T
        return ((self.inputs @ matrix) * self.outputs).sum()


@dataclass(frozen=True)
class Rows:
    """A gradient that is zero outside some rows.

    Attributes:
        index: (rows,) int64.
        values: (rows, width).
        count: Rows of the whole.
    """

    index: Tensor
    values: Tensor
    count: int

    def to(self, device: torch.device) -> "Rows":
        """The same on a device."""
        return Rows(self.index.to(device), self.values.to(device), self.count)

    def dense(self) -> Tensor:
        """The gradient itself."""
        return self.values.new_zeros(self.count, self.values.shape[1]).index_copy_(0, self.index, self.values)

    def dot(self, other: Tensor) -> Tensor:
        """Scalar product with a dense tensor."""
        return (self.values * other[self.index]).sum()


@dataclass(frozen=True)
class Dense:
    """A gradient as it is."""

    values: Tensor

    def to(self, device: torch.device) -> "Dense":
        """The same on a device."""
        return Dense(self.values.to(device))

    def dense(self) -> Tensor:
        """The gradient itself."""
        return self.values

    def dot(self, other: Tensor) -> Tensor:
        """Scalar product with a dense tensor."""
        return (self.values * other).sum()


Part = Factors | Rows | Dense
"""The gradient of one example with respect to one slot."""


@dataclass(frozen=True)
class BatchGradients:
    """Gradients of the examples of one batch, apart from one another.

    Attributes:
        factors: By slot: inputs and output gradients, (batch, positions, ...), and from where to where each example
            has a part in the loss; padding has none.
        rows: By slot: for each example the rows that it touches and their gradients.
        dense: By slot: (batch, *shape).
    """

    factors: Mapping[Slot, tuple[Tensor, Tensor, Sequence[slice]]]
    rows: Mapping[Slot, Sequence[tuple[Tensor, Tensor]]]
    dense: Mapping[Slot, Tensor]

    def of(self, example: int) -> Iterator[tuple[Slot, Part]]:
        """The parts of one example."""
        for slot, each in self.dense.items():
            yield slot, Dense(each[example])
        for slot, (inputs, outputs, spans) in self.factors.items():
            span = spans[example]
            yield slot, Factors(inputs[example][span], outputs[example][span], slot.use is Use.TRANSPOSED)
        for slot, each in self.rows.items():
            index, values = each[example]
            yield slot, Rows(index, values, slot.shape[0])


class Capture:
    """Catches, while it is open, what the gradients of a batch's examples are made of.

    Args:
        model: What is trained. Each module must see one example a place on the first axis.
        slots: Whose gradients are wanted.
        examples: Size of the batch.
    """

    def __init__(self, model: nn.Module, slots: Sequence[Slot], examples: int) -> None:
        self.model, self.examples = model, examples
        self.modules: dict[str, list[Slot]] = {}
        for slot in slots:
            self.modules.setdefault(slot.module, []).append(slot)
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in self.modules}
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Hang the hooks in."""
        for path in self.modules:
            module = self.model.get_submodule(path)
            self.handles.append(module.register_forward_hook(_Hook(self, path), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks out."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def gradients(self) -> BatchGradients:
        """What was caught, after the backward pass.

        Raises:
            ModelError: A layer was not used, so it has no gradient.
        """
        unused = [path for path, calls in self.seen.items() if not calls]
        if unused:
            raise ModelError(
                f"{len(unused)} of the layers to be logged had no part in the loss (the first is {unused[0]!r}); leave "
                "them out with `layers=`, or check that the backward pass ran within the recording"
            )
        factors: dict[Slot, tuple[Tensor, Tensor, list[slice]]] = {}
        rows: dict[Slot, list[tuple[Tensor, Tensor]]] = {}
        dense: dict[Slot, Tensor] = {}
        with torch.no_grad():
            for path, slots in self.modules.items():
                module, calls = self.model.get_submodule(path), self.seen[path]
                if slots[0].use is Use.OTHER:
                    dense |= _by_differentiation(module, slots, calls)
                    continue
                inputs, outputs = _joined(calls, is_embedding=slots[0].use is Use.EMBEDDING)
                for slot in slots:
                    if slot.use is Use.EMBEDDING:
                        rows[slot] = _touched_rows(cast(nn.Embedding, module), inputs, outputs)
                    elif slot.use in _LINEAR:
                        _split_linear(slot, inputs, outputs, factors, dense)
                    elif slot.use is Use.NORM:
                        dense[slot] = _scale_gradient(cast(nn.LayerNorm, module), inputs, outputs)
                    else:
                        dense[slot] = outputs.float().sum(1)
        return BatchGradients(factors, rows, dense)


class _Hook:
    """Keeps what goes into a module, and waits for the gradient of what comes out."""

    def __init__(self, capture: Capture, path: str) -> None:
        self.capture, self.path = capture, path
        self.embeds = capture.modules[path][0].use is Use.EMBEDDING

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not (isinstance(output, Tensor) and output.requires_grad):
            return None  # the first pass of a checkpoint that computes again later
        given = args[0] if args else next(iter(kwargs.values()))
        inputs, changed = cast(Tensor, given).detach(), None
        if self.embeds and len(output) == 1 < self.capture.examples:
            # Positions are embedded once for the whole batch; spread out, each example has a gradient of its own.
            inputs = inputs.expand(self.capture.examples, *inputs.shape[1:])
            output = changed = output.expand(self.capture.examples, *output.shape[1:])
        if len(output) != self.capture.examples:
            raise ModelError(
                f"layer {self.path!r} gave {len(output)} rows for {self.capture.examples} examples, so gradients of "
                "single examples cannot be told apart there; leave it out with `layers=`"
            )
        calls = self.capture.seen[self.path]
        output.register_hook(lambda gradient: calls.append((inputs, gradient.detach())))
        return changed


def _joined(calls: Sequence[tuple[Tensor, Tensor]], *, is_embedding: bool) -> tuple[Tensor, Tensor]:
    """Inputs and output gradients of all calls of a module as (batch, positions, ...)."""
    inputs = [each.flatten(1) if is_embedding else _positions(each) for each, _ in calls]
    outputs = [_positions(each) for _, each in calls]
    return (inputs[0], outputs[0]) if len(calls) == 1 else (torch.cat(inputs, 1), torch.cat(outputs, 1))


def _positions(values: Tensor) -> Tensor:
    return values.unsqueeze(1) if values.ndim == 2 else values.flatten(1, -2)


def _split_linear(
    slot: Slot,
    inputs: Tensor,
    outputs: Tensor,
    factors: dict[Slot, tuple[Tensor, Tensor, list[slice]]],
    dense: dict[Slot, Tensor],
) -> None:
    """Keep the gradient of a linear layer as factors, unless they take much more room than their product."""
    spans = _spans(outputs)
    longest = max(span.stop - span.start for span in spans)
    if longest * (inputs.shape[-1] + outputs.shape[-1]) < _ROOM_FOR_TIME * slot.shape[0] * slot.shape[1]:
        factors[slot] = inputs, outputs, spans
        return
    pair = (inputs, outputs) if slot.use is Use.TRANSPOSED else (outputs, inputs)
    dense[slot] = torch.bmm(pair[0].float().mT, pair[1].float())


def _spans(outputs: Tensor) -> list[slice]:
    """From the first to behind the last position of each example whose gradient is not zero."""
    counts = (outputs[..., :4] != 0).any(-1)
    unclear = ~counts  # nearly all of these are padding, and the others need not be read as a whole
    counts[unclear] = (outputs[unclear] != 0).any(-1)
    counts, length = counts.to(torch.int8), counts.shape[1]
    first, last = counts.argmax(1), length - counts.flip(1).argmax(1)
    found = torch.stack([first, last * counts.amax(1)]).tolist()
    return [slice(start, max(start, stop)) for start, stop in zip(*found, strict=True)]


def _touched_rows(module: nn.Embedding, indices: Tensor, outputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    examples, size = len(indices), module.num_embeddings
    keys = (indices + size * torch.arange(examples, device=indices.device)[:, None]).flatten()
    unique, places = keys.unique(return_inverse=True)
    sums = torch.zeros(len(unique), outputs.shape[-1], device=outputs.device)
    sums.index_add_(0, places, outputs.float().flatten(0, 1))
    kept = (sums != 0).any(-1)
    if module.padding_idx is not None:
        kept &= unique % size != module.padding_idx
    unique, sums = unique[kept], sums[kept]
    lengths = torch.bincount(unique // size, minlength=examples).tolist()
    return list(zip((unique % size).split(lengths), sums.split(lengths), strict=True))


def _scale_gradient(module: nn.LayerNorm, inputs: Tensor, outputs: Tensor) -> Tensor:
    standard = functional.layer_norm(inputs.float(), module.normalized_shape, eps=module.eps)
    return (standard * outputs.float()).sum(1)


def _by_differentiation(
    module: nn.Module, slots: Sequence[Slot], calls: Sequence[tuple[Tensor, Tensor]]
) -> dict[Slot, Tensor]:
    """Gradients of a module of any kind, differentiated anew on its own, example by example."""
    parameters = {slot.parameter: module.get_parameter(slot.parameter).detach() for slot in slots}

    def of_one(inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        def forward(own: dict[str, Tensor]) -> Tensor:
            return cast(Tensor, functional_call(module, own, (inputs.unsqueeze(0),)))

        return cast("dict[str, Tensor]", vjp(forward, parameters)[1](outputs.unsqueeze(0))[0])

    total: dict[str, Tensor] = {}
    for inputs, outputs in calls:
        for name, each in vmap(of_one)(inputs, outputs).items():
            total[name] = each if name not in total else total[name] + each
    return {slot: total[slot.parameter] for slot in slots}
