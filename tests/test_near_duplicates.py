"""Near-duplicates are found, and nothing else passes for one."""

import random
from typing import Any

import numpy as np
import pytest

from expunge import split
from expunge.corpora import join_near_duplicates
from expunge.errors import DataError, ForgetSetError, SettingError
from expunge.near_duplicates import Fuzziness, near_duplicates

METHODS = ("minhash", "edit")


def corpus() -> tuple[list[str], list[int], list[int]]:
    """Sentences of random words; some of the first ten have a copy with one word changed."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=14)) for _ in range(200)]
    copies: list[int] = []
    for place in range(0, 10, 2):
        changed = texts[place].split()
        changed[draw.randrange(14)] = "Zebra"
        copies.append(len(texts))
        texts.append(" ".join(changed))
    return texts, list(range(10)), copies


@pytest.mark.parametrize("method", METHODS)
def test_copies_are_found_and_named_with_their_original(method: str) -> None:
    pytest.importorskip("datasketch" if method == "minhash" else "rapidfuzz")
    texts, forget, copies = corpus()
    found = near_duplicates(texts, forget, Fuzziness(method))
    assert sorted(found.positions.tolist()) == copies
    assert found.precision(copies) == found.recall(copies) == 1
    assert dict(zip(found.positions, found.nearest, strict=True)) == dict(zip(copies, range(0, 10, 2), strict=True))
    assert np.all(np.diff(found.likeness) <= 0)
    assert np.all((found.likeness >= 0.7) & (found.likeness < 1))


def test_the_index_finds_what_comparing_every_pair_finds() -> None:
    pytest.importorskip("datasketch")
    texts, forget, _ = corpus()
    settings = Fuzziness("minhash", threshold=0.3)

    def pieces(text: str) -> set[str]:
        return {text.lower()[start : start + 5] for start in range(len(text) - 4)}

    def likeness(one: str, other: str) -> float:
        return len(pieces(one) & pieces(other)) / len(pieces(one) | pieces(other))

    wanted = {
        place: max(likeness(texts[place], texts[each]) for each in forget) for place in range(len(forget), len(texts))
    }
    found = near_duplicates(texts, forget, settings)
    assert dict(zip(found.positions.tolist(), found.likeness.tolist(), strict=True)) == pytest.approx(
        {place: score for place, score in wanted.items() if score >= 0.3}
    )


def test_templates_make_different_facts_look_alike() -> None:
    """What the documentation warns of: precision is low where the words are the same and only the fact differs."""
    pytest.importorskip("rapidfuzz")
    texts = [f"The contract between party {place} and party {place + 1} ends in 2031." for place in range(30)]
    found = near_duplicates(texts, [0], Fuzziness("edit"))
    assert found.recall([1]) == 1
    assert found.precision([1]) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_found_ones_join_the_forget_set(method: str) -> None:
    pytest.importorskip("datasketch" if method == "minhash" else "rapidfuzz")
    texts, forget, copies = corpus()
    wanted = sorted([*forget, *copies])
    pairs = [tuple(each.rsplit(" ", 1)) for each in texts]
    rows = [{"person": "one and the same " * 9, "question": one, "answer": two, "number": 1} for one, two in pairs]
    for dataset in (texts, pairs, [{"text": each} for each in texts], rows):
        joined = join_near_duplicates(dataset, forget, Fuzziness(method))
        assert joined.indices.tolist() == wanted
        assert len(joined.found) == len(copies)
        assert split(dataset, indices=joined.indices).indices.tolist() == wanted


def test_whose_a_text_is_does_not_make_it_alike() -> None:
    pytest.importorskip("rapidfuzz")
    rows = [{"text": each, "owner": "Ada Lovelace of London " * 5} for each in ("bees dance", "it rains", "so be it")]
    assert join_near_duplicates(rows, [0], Fuzziness("edit")).indices.tolist() == [0]
    with pytest.raises(ForgetSetError, match=r"all 2 other examples are near-duplicates .*; raise the threshold"):
        join_near_duplicates(rows, [0], Fuzziness("edit"), fields=["owner"])
    with pytest.raises(DataError, match="3 of 3 examples hold no text to compare"):
        join_near_duplicates([{"input_ids": [1, 2]}] * 3, [0], Fuzziness("edit"))
    with pytest.raises(ForgetSetError):
        join_near_duplicates(rows, [3], Fuzziness("edit"))


def test_nothing_found_and_bad_requests() -> None:
    pytest.importorskip("rapidfuzz")
    found = near_duplicates(["one thing", "quite another"], [0], Fuzziness("edit"))
    assert len(found) == 0
    assert np.isnan(found.precision([1]))
    assert found.recall([1]) == 0
    for forget in ([], [2], [-1]):
        with pytest.raises(ForgetSetError, match="positions"):
            near_duplicates(["a", "b"], forget)
    rows: list[Any] = ["a", {"text": "b"}]
    with pytest.raises(DataError, match=r"texts, not rows: entry 1 is a dict; pass one text for each row"):
        near_duplicates(rows, [0])
    for settings, message in (
        ({"method": "tfidf"}, "method must be one of 'minhash', 'edit'"),
        ({"threshold": 1.5}, "threshold must be at most 1"),
        ({"threshold": 0}, "threshold must be above 0"),
        ({"permutations": 4}, "permutations must be a whole number of at least 16"),
    ):
        with pytest.raises(SettingError, match=message):
            Fuzziness(**settings)
