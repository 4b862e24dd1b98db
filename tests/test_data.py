"""Reading datasets of every form."""

import datetime
from typing import Any

import datasets as hf
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

import tiny
from expunge.data import (
    INPUT_NAMES,
    LABEL_NAMES,
    MapDataset,
    View,
    column,
    digest_dataset,
    field_key,
    positions,
    shared_positions,
)
from expunge.errors import DataError, ForgetSetError


@pytest.mark.parametrize("form", tiny.FORMS)
def test_every_form_is_a_map_dataset(form: str) -> None:
    assert isinstance(tiny.FORMS[form](tiny.vectors(per_class=1)), MapDataset)


def test_nested_subsets_become_one_list_of_positions() -> None:
    base = list(range(100))
    view = View.of(Subset(Subset(Subset(base, range(10, 60)), [5, 6, 40]), [2, 0, 0]))
    assert view.base is base
    assert view.indices.tolist() == [50, 15, 15]
    assert view.examples(torch.tensor([1, 0])) == [15, 50]
    assert View.of(Subset(base, [])).indices.tolist() == []


class Bulk:
    """A dataset that fetches many examples at once."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> int:
        raise AssertionError("one by one")

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.asked.append(indices)
        return [index * 10 for index in indices]


def test_datasets_that_fetch_many_are_asked_once() -> None:
    data = Bulk()
    assert View.of(Subset(data, [8, 1, 3])).examples(torch.tensor([0, 2])) == [80, 30]
    assert data.asked == [[8, 3]]


@pytest.mark.parametrize("name", INPUT_NAMES)
def test_usual_names_of_inputs_are_found(name: str) -> None:
    assert field_key({"id": 1, name: 2}, INPUT_NAMES, 0, "input") == name


@pytest.mark.parametrize("name", LABEL_NAMES)
def test_usual_names_of_labels_are_found(name: str) -> None:
    assert field_key({"id": 1, name: 2}, LABEL_NAMES, 1, "label") == name


def test_fields_that_cannot_be_found() -> None:
    assert field_key(("a", 1), LABEL_NAMES, 1, "label") == 1
    with pytest.raises(DataError, match="no label found: the examples have the fields id, photo; name the right one"):
        field_key({"photo": 1, "id": 2}, LABEL_NAMES, 1, "label")
    with pytest.raises(DataError, match="an example has 1 fields, too few to hold a label at 1"):
        field_key(("a",), LABEL_NAMES, 1, "label")
    with pytest.raises(DataError, match="an example is a float; a tuple or a mapping is needed"):
        field_key(1.5, LABEL_NAMES, 1, "label")


@pytest.mark.parametrize(("form", "key"), [("tensors", 1), ("tuples", 1), ("mappings", "y"), ("hugging face", "label")])
def test_a_column_of_every_form(form: str, key: Any) -> None:
    data = tiny.FORMS[form](tiny.vectors(per_class=2))
    assert column(data, key).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert column(Subset(data, [6, 1, 1]), key).tolist() == [2, 1, 1]


@pytest.mark.parametrize(("form", "key"), [("tensors", 5), ("tensors", "y"), ("tuples", 2), ("mappings", "z")])
def test_a_column_that_is_not_there(form: str, key: Any) -> None:
    with pytest.raises(DataError, match=rf"the examples have no field {key!r}; name one that they have"):
        column(tiny.FORMS[form](tiny.vectors(per_class=1)), key)


def test_a_hugging_face_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match="the dataset has no column 'z'; it has pixel_values, label"):
        column(tiny.as_hugging_face(tiny.vectors(per_class=1)), "z")


def test_a_column_is_read_without_the_others() -> None:
    def refuse(_example: Any) -> Any:
        raise AssertionError("the images were decoded")

    data = hf.Dataset.from_dict({"image": [1, 2, 3], "label": [5, 6, 7]}).with_transform(refuse)
    assert column(data, "label").tolist() == [5, 6, 7]


def test_shared_positions() -> None:
    base = list(range(20))
    assert shared_positions(Subset(base, [1, 2, 3]), Subset(Subset(base, range(10)), [3, 9])) == 1
    assert shared_positions(Subset(base, [1, 2]), Subset(base, [3])) == 0
    assert shared_positions(base, Subset(base, [3, 4])) == 20 - 18
    assert shared_positions(base, list(base)) == 0


def test_positions_from_indices_and_masks() -> None:
    assert positions([3, 1, 3], 5).tolist() == [1, 3]
    assert positions(np.array([4], dtype=np.int32), 5).tolist() == [4]
    assert positions(torch.tensor([False, True, True]), 3).tolist() == [1, 2]
    assert positions([True, False], 2).tolist() == [0]
    assert positions([], 5).tolist() == []
    assert positions(range(2), 5).tolist() == [0, 1]


def test_positions_from_pandas() -> None:
    table = pd.DataFrame({"age": [3, 60, 70]})
    mask = (table["age"] > 50).to_numpy()
    mask.setflags(write=False)  # torch warns of such an array, and warnings are errors here
    assert positions(mask, 3).tolist() == [1, 2]
    assert positions(table["age"] > 50, 3).tolist() == [1, 2]
    assert positions((table["age"] > 50).astype("boolean").astype(object), 3).tolist() == [1, 2]
    assert positions(table.index[1:], 3).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([0, 5], r"1 forget indices lie outside the dataset \(the first is 5; valid are 0 to 4\)"),
        ([-1, -2], r"2 forget indices lie outside the dataset \(the first is -1"),
        ([1.0], "indices must be whole numbers, not float64"),
        (["ann", "bob"], r"not a list of text; give positions, not labels: .*df\.index\.get_indexer"),
        (pd.Index(["ann", "bob"]), "positions, not labels"),
        (pd.Index([1, "bob"]), "positions, not labels"),
        (pd.Series([1, None], dtype="Int64"), "whole numbers, not float64"),
        (pd.date_range("2020-01-01", periods=2), "positions, not labels"),
        ({1, 2}, r"not a set of 0 axes; .* for a set list"),
        (3, "not a int of 0 axes"),
        ([[True], [False]], "not a list of 2 axes"),
        ([[1], [2, 3]], "not lists of several lengths"),
        ([True, False], "the mask has 2 entries but the dataset has 5 examples"),
    ],
)
def test_positions_that_cannot_be(indices: Any, words: str) -> None:
    with pytest.raises(ForgetSetError, match=words):
        positions(indices, 5)


KEY = b"k" * 32


def test_digests_are_keyed_and_cover_everything() -> None:
    inputs, labels = torch.arange(12.0).reshape(4, 3), torch.arange(4)
    variants: list[MapDataset] = [
        TensorDataset(inputs, labels),
        TensorDataset(inputs, labels.flip(0)),
        TensorDataset(inputs.nextafter(torch.tensor(99.0)), labels),
        Subset(TensorDataset(inputs, labels), [0, 1, 2]),
        Subset(TensorDataset(inputs, labels), [1, 0, 2, 3]),
    ]
    digests = [digest_dataset(data, KEY) for data in variants]
    assert len(set(digests)) == len(digests)
    assert digests == [digest_dataset(data, KEY) for data in variants]
    assert not set(digests) & {digest_dataset(data, b"another key") for data in variants}
    assert digest_dataset(Subset(variants[0], [0, 1, 2]), KEY) == digests[3]


@pytest.mark.parametrize("length", [10, 1024, 5000])
def test_digests_of_data_in_memory_miss_no_example(length: int) -> None:
    values = torch.zeros(length, 2)
    before = digest_dataset(TensorDataset(values.clone()), KEY)
    for position in (0, length // 2 + 1, length - 1):
        changed = values.clone()
        changed[position, 1] = 1e-6
        assert digest_dataset(TensorDataset(changed), KEY) != before


def test_digests_of_long_lists_read_a_sample() -> None:
    read: list[int] = []

    class Counting:
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[int, int]:
            read.append(index)
            return index, 0

    digest_dataset(Counting(), KEY)
    assert len(read) == 1024
    assert (read[0], read[-1]) == (0, 99_999)


def test_digests_take_any_value() -> None:
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    example = {
        "picture": picture,
        "name": "Ä",
        "array": np.array([1.5, 2]),
        "nested": [1, (2, {"deep": torch.ones(2)})],
        "bytes": b"\x00",
        "nothing": None,
        "number": np.int64(3),
        "born": datetime.datetime(1990, 2, 3),
    }
    again = {**example, "picture": picture.copy(), "born": datetime.datetime(1990, 2, 3)}
    before = digest_dataset([example], KEY)
    assert digest_dataset([again], KEY) == before
    changes = {"name": "A", "array": np.array([1.5, 3]), "nothing": 0, "born": datetime.datetime(1990, 2, 4)}
    changes |= {"nested": [1, (2, {"deep": torch.zeros(2)})], "number": np.int64(4), "picture": picture.rotate(90)}
    others = {digest_dataset([{**example, name: value}], KEY) for name, value in changes.items()}
    assert len(others) == len(changes)
    assert before not in others
