"""Texts that say nearly what others say, to be forgotten along with them."""

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from expunge.errors import DataError, ForgetSetError, SettingError
from expunge.settings import require_one_of, require_positive, require_whole

_CHUNK = 1024
_MARGIN = 0.7  # the index is asked for less than is wanted, for it misses some that lie at its threshold


@dataclass(frozen=True)
class Fuzziness:
    """How alike two texts must be.

    Args:
        method: `minhash` compares sets of character sequences (Jaccard), which stands reordering and costs little
            on large corpora (Broder 1997). `edit` compares by insertions, deletions and substitutions (Levenshtein),
            as a share of what differs at most; every pair is compared.
        threshold: Likeness from which on a text counts, in (0, 1]. Default .7 (ours).
        length: Characters of a sequence, for `minhash`. Default 5 (ours).
        permutations: Of `minhash`. Default that of datasketch.
    """

    method: Literal["minhash", "edit"] = "minhash"
    threshold: float = 0.7
    length: int = 5
    permutations: int = 128

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_one_of(self, "method", ("minhash", "edit"))
        require_positive(self, "threshold")
        require_whole(self, "length")
        require_whole(self, "permutations", least=16)
        if self.threshold > 1:
            raise SettingError(f"threshold must be at most 1, not {self.threshold!r}")


@dataclass(frozen=True)
class NearDuplicates:
    """What was found. How many of these are meant only a person can tell: look at some before they are forgotten.

    Attributes:
        positions: (found,) in the corpus, those of the forget set left out; the most alike first.
        likeness: (found,) to the nearest text of the forget set.
        nearest: (found,) position of that text in the corpus.
    """

    positions: NDArray[np.int64]
    likeness: NDArray[np.float64]
    nearest: NDArray[np.int64]

    def __len__(self) -> int:
        """How many were found."""
        return len(self.positions)

    def precision(self, meant: Iterable[int]) -> float:
        """Share of what was found that is meant; NaN where nothing was found."""
        return float(np.isin(self.positions, list(meant)).mean()) if len(self) else float("nan")

    def recall(self, meant: Iterable[int]) -> float:
        """Share of what is meant that was found; NaN where nothing is meant."""
        wanted = list(meant)
        return float(np.isin(wanted, self.positions).mean()) if wanted else float("nan")


def near_duplicates(texts: Sequence[str], forget: Iterable[int], fuzziness: Fuzziness | None = None) -> NearDuplicates:
    """Find what a corpus holds that is nearly the same as some of its texts.

    On texts made from one template different facts look alike, so many of what is found may not be meant.

    Args:
        texts: The corpus.
        forget: Positions of the texts to be forgotten.
        fuzziness: How alike; by default MinHash from .7 on.

    Raises:
        ForgetSetError: Nothing is to be forgotten, or a position is outside the corpus.
        DataError: The corpus holds something else than texts.
        SettingError: The library of the method is not installed.

    Example:
        >>> corpus = ["Ada was born in London in 1815.", "Ada was born in London in 1816.", "Bees dance."]
        >>> found = near_duplicates(corpus, [0], Fuzziness("edit"))
        >>> found.positions.tolist(), found.nearest.tolist()
        ([1], [0])
    """
    settings = fuzziness or Fuzziness()
    asked = sorted(set(forget))
    if not asked:
        raise ForgetSetError("nothing is to be forgotten, so nothing is like it; give positions of texts")
    if asked[0] < 0 or asked[-1] >= len(texts):
        raise ForgetSetError(f"positions of the forget set must lie in the corpus (0 to {len(texts) - 1})")
    _require_texts(texts)
    others = sorted(set(range(len(texts))) - set(asked))
    compare = _by_minhash if settings.method == "minhash" else _by_edits
    likeness, nearest = compare(texts, asked, others, settings)
    kept = np.flatnonzero(likeness >= settings.threshold)
    order = kept[np.argsort(-likeness[kept], kind="stable")]
    return NearDuplicates(
        np.asarray(others, np.int64)[order], likeness[order], np.asarray(asked, np.int64)[nearest[order]]
    )


def _require_texts(texts: Sequence[Any]) -> None:
    wrong = next((place for place, each in enumerate(texts) if not isinstance(each, str)), None)
    if wrong is not None:
        raise DataError(
            f"near-duplicates are found among texts, not rows: entry {wrong} is a {type(texts[wrong]).__name__}; pass "
            "one text for each row, such as [row['text'] for row in rows]"
        )


Found = tuple[NDArray[np.float64], NDArray[np.int64]]


def _by_minhash(texts: Sequence[str], asked: Sequence[int], others: Sequence[int], settings: Fuzziness) -> Found:
    sketches = _library("datasketch")
    index = sketches.MinHashLSH(threshold=_MARGIN * settings.threshold, num_perm=settings.permutations)
    sets = [_sequences(texts[place], settings.length) for place in asked]
    for number, each in enumerate(sets):
        index.insert(number, _sketch(sketches, each, settings))
    likeness, nearest = np.zeros(len(others)), np.zeros(len(others), np.int64)
    for row, place in enumerate(others):
        own = _sequences(texts[place], settings.length)
        for number in sorted(cast("list[int]", index.query(_sketch(sketches, own, settings)))):
            score = len(own & sets[number]) / len(own | sets[number])
            if score > likeness[row]:
                likeness[row], nearest[row] = score, number
    return likeness, nearest


def _by_edits(texts: Sequence[str], asked: Sequence[int], others: Sequence[int], settings: Fuzziness) -> Found:
    process, distance = _library("rapidfuzz.process"), _library("rapidfuzz.distance")
    wanted = [_plain(texts[place]) for place in asked]
    likeness, nearest = np.zeros(len(others)), np.zeros(len(others), np.int64)
    for start in range(0, len(others), _CHUNK):
        part = [_plain(texts[place]) for place in others[start : start + _CHUNK]]
        scores = process.cdist(
            part,
            wanted,
            scorer=distance.Levenshtein.normalized_similarity,
            score_cutoff=settings.threshold,
            dtype=np.float64,
        )
        rows = slice(start, start + len(part))
        nearest[rows] = scores.argmax(1)
        likeness[rows] = scores.max(1)
    return likeness, nearest


def _sequences(text: str, length: int) -> set[str]:
    plain = _plain(text)
    return {plain[start : start + length] for start in range(max(1, len(plain) - length + 1))}


def _sketch(sketches: Any, sequences: set[str], settings: Fuzziness) -> Any:
    sketch = sketches.MinHash(num_perm=settings.permutations, seed=1)
    sketch.update_batch([each.encode() for each in sequences])
    return sketch


def _plain(text: str) -> str:
    """Lower case, with single spaces."""
    return " ".join(text.lower().split())


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise SettingError(
            f"finding near-duplicates this way needs {package}, which is not installed: pip install "
            "'expunge[language]', or choose the other method"
        ) from error
