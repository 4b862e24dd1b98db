"""Examples that say nearly what is to be forgotten join the forget set before the data are parted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.corpora.finding import texts_in
from expunge.data import Example, MapDataset, View, positions
from expunge.errors import DataError, ForgetSetError
from expunge.near_duplicates import Fuzziness, NearDuplicates, near_duplicates

_CHUNK = 1024
_READ = (("text",), ("question", "answer"))  # what a language model reads of a mapping; other fields say whose it is


@dataclass(frozen=True)
class Joined:
    """A forget set with what is nearly the same.

    Attributes:
        indices: (examples,) int64, sorted positions of the forget set and of what joined it.
        found: What joined it; `len(found)` is how many.
    """

    indices: Tensor
    found: NearDuplicates


def join_near_duplicates(
    dataset: MapDataset,
    forget: Sequence[int] | NDArray[Any] | Tensor,
    fuzziness: Fuzziness | None = None,
    *,
    fields: Sequence[str] | None = None,
) -> Joined:
    """Positions of a forget set together with the examples of text that say nearly the same.

    Compared is with what was asked for, not with what joined it, so one chance likeness does not lead to the next.
    Different facts in the same words look alike: look at what was found before it is forgotten.

    Args:
        dataset: Examples of text: strings, tuples or mappings that hold some.
        forget: Positions of what was asked for, or a boolean mask over the dataset.
        fuzziness: How alike; by default MinHash from .7 on.
        fields: Fields of a mapping that are compared, joined by a space; by default `text`, or `question` and
            `answer`, or else all that hold text.

    Raises:
        ForgetSetError: Nothing is to be forgotten, a position is outside the dataset, or nothing would be left.
        DataError: An example holds no text.
        SettingError: The library of the method is not installed.

    Example:
        >>> rows = [{"text": "Ada was born in 1815."}, {"text": "Ada was born in 1816."}, {"text": "Bees dance."}]
        >>> joined = join_near_duplicates(rows, [0], Fuzziness("edit"))
        >>> joined.indices.tolist(), len(joined.found)
        ([0, 1], 1)
    """
    asked = positions(forget, len(dataset)).tolist()
    found = near_duplicates(_corpus(dataset, fields), asked, fuzziness)
    indices = torch.from_numpy(np.union1d(asked, found.positions).astype(np.int64))
    if len(indices) == len(dataset):
        raise ForgetSetError(
            f"all {len(found):,} other examples are near-duplicates of the forget set, so none would be left; raise "
            "the threshold"
        )
    return Joined(indices, found)


def _corpus(dataset: MapDataset, fields: Sequence[str] | None) -> list[str]:
    view, corpus = View.of(dataset), list[str]()
    for chunk in torch.arange(len(dataset)).split(_CHUNK):
        corpus += [" ".join(texts_in(example, fields or _read(example))) for example in view.examples(chunk)]
    empty = sum(not text.strip() for text in corpus)
    if empty:
        raise DataError(f"{empty:,} of {len(corpus):,} examples hold no text to compare; name the `fields` that do")
    return corpus


def _read(example: Example) -> Sequence[str] | None:
    if not isinstance(example, Mapping):
        return None
    row = cast("Mapping[str, Any]", example)
    return next((names for names in _READ if all(name in row for name in names)), None)
