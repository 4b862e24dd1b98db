"""The gradient of one example as bytes: a JSON header that says what follows, and the numbers as they lie in memory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Buffer

from expunge.states.gradient_capture import BatchGradients, Dense, Factors, Part, Rows
from expunge.states.gradient_layers import Slot, Use

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """The gradient of one example as it entered the loss of its batch.

    Attributes:
        weight: Of the example's own loss in the loss of the batch.
        parts: `weight` times the gradient of the example's own loss, by slot.
    """

    weight: float
    parts: Mapping[Slot, Part]


class BatchEncoder:
    """Turns the gradients of a batch into one record an example, with work a batch wherever that is possible.

    Args:
        gradients: Of the batch.
        slots: All slots of the log; a record names them by their place here.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, gradients: BatchGradients, slots: Sequence[Slot], precision: str) -> None:
        number = {slot: place for place, slot in enumerate(slots)}
        kind = PRECISIONS[precision]
        self.rows = gradients.rows
        self.numbers = number
        self.kind = kind
        self.dense_slots = [number[slot] for slot in gradients.dense]
        flat = [each.flatten(1).to(kind) for each in gradients.dense.values()]
        self.dense = torch.cat(flat, 1).cpu() if flat else None
        self.factors = {
            slot: (_stored(inputs, kind), _stored(outputs, kind), spans)
            for slot, (inputs, outputs, spans) in gradients.factors.items()
        }

    def record(self, example: int, weight: float) -> list[Buffer]:
        """The record of one example of the batch, in pieces to be written one after the other."""
        indices: list[Buffer] = []
        body: list[Buffer] = [] if self.dense is None else [_buffer(self.dense[example])]
        factors: list[tuple[int, int]] = []
        rows: list[tuple[int, int]] = []
        for slot, (inputs, outputs, spans) in self.factors.items():
            span = spans[example]
            factors.append((self.numbers[slot], span.stop - span.start))
            body += [_buffer(each[example][span]) for each in (inputs, outputs)]
        for slot, each in self.rows.items():
            index, values = each[example]
            rows.append((self.numbers[slot], len(index)))
            indices.append(_buffer(index.to(torch.int32).cpu()))
            body.append(_buffer(_stored(values, self.kind)))
        header = {"weight": weight, "dense": self.dense_slots, "factors": factors, "rows": rows}
        return [_head(header), *indices, *body]


def decode(content: bytearray, slots: Sequence[Slot], precision: str, wanted: frozenset[Slot]) -> Entry:
    """Read a record; parts of slots that are not wanted are passed over.

    Args:
        content: What `BatchEncoder.record` gave, in one piece.
        slots: All slots of the log.
        precision: As it was written.
        wanted: Which slots to read.
    """
    header, reader = _opened(content, precision)
    parts: dict[Slot, Part] = {}
    indices = [(slots[number], reader.indices(count)) for number, count in header["rows"]]
    for number in header["dense"]:
        values = reader.numbers(slots[number].shape, wanted=slots[number] in wanted)
        if values is not None:
            parts[slots[number]] = Dense(values)
    for number, positions in header["factors"]:
        slot = slots[number]
        transposed = slot.use is Use.TRANSPOSED
        out, within = slot.shape[::-1] if transposed else slot.shape
        inputs = reader.numbers((positions, within), wanted=slot in wanted)
        outputs = reader.numbers((positions, out), wanted=slot in wanted)
        if inputs is not None and outputs is not None:
            parts[slot] = Factors(inputs, outputs, transposed)
    for slot, index in indices:
        values = reader.numbers((len(index), slot.shape[1]), wanted=slot in wanted)
        if values is not None:
            parts[slot] = Rows(index, values, slot.shape[0])
    return Entry(float(header["weight"]), parts)


def encode_tensors(tensors: Sequence[Tensor], precision: str) -> list[Buffer]:
    """Tensors one after the other, with a header that tells their sizes."""
    kind = PRECISIONS[precision]
    return [_head([each.numel() for each in tensors]), *(_buffer(_stored(each, kind)) for each in tensors)]


def decode_tensors(content: bytearray, precision: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Read what `encode_tensors` wrote."""
    _, reader = _opened(content, precision)
    return [cast(Tensor, reader.numbers(shape, wanted=True)) for shape in shapes]


class _Reader:
    def __init__(self, content: bytearray, offset: int, precision: str) -> None:
        self.content, self.offset, self.kind = content, offset, PRECISIONS[precision]

    def indices(self, count: int) -> Tensor:
        found = np.frombuffer(self.content, np.int32, count, self.offset)
        self.offset += found.nbytes
        return torch.from_numpy(found.astype(np.int64))

    def numbers(self, shape: tuple[int, ...], *, wanted: bool) -> Tensor | None:
        stored = np.dtype(np.float32 if self.kind is torch.float32 else np.int16)
        count = int(np.prod(shape))
        start = self.offset
        self.offset += count * stored.itemsize
        if not wanted:
            return None
        found = torch.from_numpy(np.frombuffer(self.content, stored, count, start).copy())
        return found.view(self.kind).float().reshape(shape)


def _opened(content: bytearray, precision: str) -> tuple[Any, _Reader]:
    length = int.from_bytes(content[:_ALIGNMENT], "little")
    header: Any = json.loads(content[_ALIGNMENT : _ALIGNMENT + length])
    return header, _Reader(content, _ALIGNMENT + length, precision)


def _head(header: Any) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_ALIGNMENT, "little") + text


def _stored(values: Tensor, kind: torch.dtype) -> Tensor:
    return values.detach().to(kind).cpu().contiguous()


def _buffer(values: Tensor) -> Buffer:
    return cast(Buffer, (values.view(torch.int16) if values.dtype is torch.bfloat16 else values).numpy())


def scaled(part: Part, factor: float) -> Part:
    """A part times a number."""
    if isinstance(part, Factors):
        return replace(part, outputs=part.outputs * factor)
    return replace(part, values=part.values * factor)
