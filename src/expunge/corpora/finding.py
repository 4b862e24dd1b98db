"""Which examples of a corpus mention what a request names."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from expunge.data import Example, MapDataset, View
from expunge.errors import DataError, SettingError

_CHUNK = 1024


def occurrences(
    dataset: MapDataset, phrases: str | Sequence[str], *, fields: Sequence[str] | None = None, whole_words: bool = True
) -> Tensor:
    """Positions of the examples in which any of some phrases occurs: (examples,) int64, perhaps none.

    Letters are compared without case, accents or the width of characters, and white space as one space. Other
    spellings and pronouns are not found: look at what was, and pass every form of a name.

    Args:
        dataset: Examples of text: strings, tuples or mappings that hold some.
        phrases: What to look for.
        fields: Fields of a mapping to look in; all that hold text by default.
        whole_words: Whether a phrase must begin and end where words do.

    Raises:
        SettingError: A phrase is empty.
        DataError: An example holds no text.

    Example:
        >>> rows = [{"text": "Ann lives in Rome."}, {"text": "Joanna does not."}, {"text": "ANN  left."}]
        >>> occurrences(rows, "ann").tolist()
        [0, 2]
    """
    wanted = [plain(phrase) for phrase in ([phrases] if isinstance(phrases, str) else phrases)]
    if not wanted or not all(wanted):
        raise SettingError("phrases must hold text to look for, at least one and none of them empty")
    edge = r"(?<!\w){}(?!\w)" if whole_words else "{}"
    pattern = re.compile("|".join(edge.format(re.escape(phrase)) for phrase in wanted))
    view, found = View.of(dataset), list[int]()
    for positions in torch.arange(len(dataset)).split(_CHUNK):
        for position, example in zip(positions.tolist(), view.examples(positions), strict=True):
            texts = list(texts_in(example, fields))
            if not texts:
                raise DataError("an example holds no text to look in; name the fields that do with `fields`")
            if any(pattern.search(plain(text)) for text in texts):
                found.append(position)
    return torch.tensor(found, dtype=torch.long)


def plain(text: str) -> str:
    """A text as it is compared: without case and accents, and with single spaces."""
    spread = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(letter for letter in spread if not unicodedata.combining(letter)).split())


def texts_in(example: Example, fields: Sequence[str] | None) -> Iterable[str]:
    """The texts of an example: a string itself, those of a tuple, or of these fields (all by default) of a mapping."""
    if isinstance(example, str):
        yield example
    elif isinstance(example, Mapping):
        row = cast("Mapping[str, Any]", example)
        yield from (row[name] for name in (fields or row) if isinstance(row.get(name), str))
    elif isinstance(example, tuple | list):
        yield from (part for part in cast("Sequence[Any]", example) if isinstance(part, str))
