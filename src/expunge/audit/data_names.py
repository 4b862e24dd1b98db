"""Names of datasets by what they hold."""

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from expunge.data import MapDataset, View, digest_dataset
from expunge.errors import DataError
from expunge.training import seed_globals

_CHUNK, _SAMPLE = 1024, 16


class DataNames:
    """Names of datasets by what they hold; each example is read once, however many datasets share it."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._seen: dict[int, tuple[MapDataset, dict[int, bytes]]] = {}

    def of(self, dataset: MapDataset) -> str:
        """A keyed digest over every example, in order.

        Raises:
            DataError: The dataset gives other examples each time it is read.
        """
        view = View.of(dataset)
        # The dataset is held beside its digests, for the number that stands for it would pass to another.
        _, known = self._seen.setdefault(id(view.base), (view.base, {}))
        wanted = cast("list[int]", view.indices.tolist())
        missing = sorted({position for position in wanted if position not in known})
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            known.update(zip(chunk, self._digests(view.base, torch.tensor(chunk)), strict=True))
        state = hmac.new(self._key, digestmod=hashlib.sha256)
        for position in wanted:
            state.update(known[position])
        return state.hexdigest()

    def _digests(self, base: MapDataset, positions: Tensor) -> Iterator[bytes]:
        whole = View(base, torch.arange(len(base)))
        first = self._read(whole, positions[:_SAMPLE], 1)
        if first != self._read(whole, positions[:_SAMPLE], 2):
            raise DataError("the dataset gives other examples each time it is read")
        yield from first
        yield from self._read(whole, positions[_SAMPLE:], 1)

    def _read(self, view: View, positions: Tensor, seed: int) -> list[bytes]:
        seed_globals(seed, "cache")
        columns = view.columns(positions) if len(positions) else ()
        if isinstance(columns, tuple):
            examples: list[Any] = list(zip(*cast("tuple[Tensor, ...]", columns), strict=True))
        else:
            examples = view.examples(positions)
        return [bytes.fromhex(digest_dataset([example], self._key)) for example in examples]
