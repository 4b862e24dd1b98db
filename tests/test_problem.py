"""Parting data, and what makes a request."""

import doctest
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from torch.utils.data import Subset

import expunge.problem
import tiny
from expunge import Problem, split
from expunge.errors import DataError, ForgetSetError, NonFiniteModelError, SettingError

PEOPLE = [
    {"x": torch.tensor([float(index)]), "label": index % 3, "patient": name, "visit": visit}
    for index, (name, visit) in enumerate([("p-1", 1), ("p-2", 1), ("p-1", 2), ("p-3", 1), ("p-2", 2), ("p-1", 3)])
]
FORMS: dict[str, Any] = {"list": PEOPLE, "hugging face": hf.Dataset.from_list([{**p, "x": [1.0]} for p in PEOPLE])}
over_forms = pytest.mark.parametrize("form", FORMS)


def indices(dataset: Subset[Any]) -> list[int]:
    return list(dataset.indices)


@pytest.mark.parametrize(
    "given",
    [[4, 1, 1], (1, 4), np.array([1, 4]), torch.tensor([4, 1]), torch.tensor([False, True, False, False, True, False])],
    ids=lambda given: type(given).__name__,
)
def test_split_by_indices_and_mask(given: Any) -> None:
    parts = split(PEOPLE, indices=given)
    assert indices(parts.forget) == parts.indices.tolist() == [1, 4]
    assert indices(parts.retain) == [0, 2, 3, 5]
    assert parts.classes == ()
    assert parts.forget[0] is PEOPLE[1]


@over_forms
def test_split_by_predicate(form: str) -> None:
    parts = split(FORMS[form], where=lambda person: person["visit"] > 1)
    assert indices(parts.forget) == [2, 4, 5]


@over_forms
def test_split_by_column_takes_all_rows_of_a_person(form: str) -> None:
    parts = split(FORMS[form], column_is=("patient", ["p-1", "p-3"]))
    assert indices(parts.forget) == [0, 2, 3, 5]
    assert indices(split(FORMS[form], column_is=("visit", [2])).forget) == [2, 4]


@over_forms
def test_split_by_class(form: str) -> None:
    parts = split(FORMS[form], classes=[2, 0, 2])
    assert indices(parts.forget) == [0, 2, 3, 5]
    assert parts.classes == (0, 2)
    assert indices(split(FORMS[form], classes=[3], label="visit").forget) == [5]


@pytest.mark.parametrize("form", tiny.FORMS)
def test_split_by_class_in_every_form(form: str) -> None:
    parts = split(tiny.FORMS[form](tiny.vectors(per_class=2)), classes=(1,))
    assert indices(parts.forget) == [1, 5]


def test_split_of_a_subset_stays_within_it() -> None:
    parts = split(Subset(PEOPLE, [5, 4, 3]), column_is=("patient", ["p-3"]))
    assert indices(parts.forget) == [2]
    assert parts.forget[0] is PEOPLE[3]


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ({"indices": []}, "the forget set is empty: no example was selected"),
        ({"indices": [False] * 6}, "the forget set is empty"),
        ({"indices": range(6)}, "the forget set is the whole dataset"),
        ({"indices": [6]}, "lie outside the dataset .the first is 6; valid are 0 to 5"),
        ({"indices": [True] * 5}, "the mask has 5 entries but the dataset has 6 examples"),
        ({"where": lambda person: False}, "the forget set is empty"),
        ({"where": lambda person: True}, "forgetting everything means discarding the model"),
        ({"column_is": ("patient", ["p-1", "p-9"])}, r"1 of the 2 values .* field 'patient' \(by position .*: \[1\]\)"),
        ({"column_is": ("visit", ["1"])}, "check their spelling and type"),
        ({"column_is": ("patient", [])}, "the forget set is empty"),
        ({"classes": []}, "the forget set is empty"),
        ({"classes": [7]}, "1 of the 1 values asked for do not occur among the classes"),
        ({"classes": [0, 1, 2]}, "the forget set is the whole dataset"),
    ],
)
def test_selections_that_cannot_be(selector: dict[str, Any], words: str) -> None:
    with pytest.raises(ForgetSetError, match=words):
        split(PEOPLE, **selector)


def test_values_that_were_asked_for_are_not_repeated() -> None:
    with pytest.raises(ForgetSetError) as failure:
        split(PEOPLE, column_is=("patient", ["Erika Mustermann"]))
    assert "Erika" not in str(failure.value)


def test_exactly_one_selector() -> None:
    with pytest.raises(SettingError, match="give exactly one of indices, where, column_is and classes, not none"):
        split(PEOPLE)
    with pytest.raises(SettingError, match=r"not \['indices', 'classes'\]"):
        split(PEOPLE, indices=[1], classes=[1])


def test_nothing_to_split() -> None:
    with pytest.raises(ForgetSetError, match="the dataset is empty"):
        split([], indices=[0])
    with pytest.raises(DataError, match="no field 'name'"):
        split(PEOPLE, column_is=("name", ["x"]))
    with pytest.raises(DataError, match="no label found: the examples have the fields age"):
        split([{"age": 3}, {"age": 4}], classes=[1])


def test_a_request_needs_something_to_forget_and_something_to_keep() -> None:
    model, data = torch.nn.Linear(1, 4), list(range(10))
    with pytest.raises(ForgetSetError, match="nothing is to be forgotten: pass a `forget` dataset, `classes`, or both"):
        Problem(model, tiny.TASK, retain=data)
    with pytest.raises(ForgetSetError, match="the forget set is empty; check the indices"):
        Problem(model, tiny.TASK, forget=Subset(data, []))
    with pytest.raises(ForgetSetError, match="the retain set is empty: forgetting everything means"):
        Problem(model, tiny.TASK, forget=data, retain=Subset(data, []))
    with pytest.raises(ForgetSetError, match=r"2 examples are in both .*; use `expunge\.split` to part them"):
        Problem(model, tiny.TASK, forget=Subset(data, [1, 2, 3]), retain=Subset(data, [2, 3, 4]))
    Problem(model, tiny.TASK, classes=(1,))


@pytest.mark.parametrize("form", tiny.FORMS)
def test_classes_and_labels_must_agree(form: str) -> None:
    model, data = torch.nn.Linear(tiny.FEATURES, 4), tiny.FORMS[form](tiny.vectors(per_class=2))
    parts = split(data, classes=(1, 2))
    Problem(model, tiny.TASK, parts.forget, parts.retain, classes=(1, 2))
    Problem(model, tiny.TASK, parts.forget, parts.retain)
    Problem(model, tiny.TASK, split(data, indices=[1]).forget, parts.retain, classes=(1, 2))
    with pytest.raises(
        ForgetSetError,
        match=r"2 of 4 forget examples belong to a class other than those named \(1\); .*leave `classes` out to forget",
    ):
        Problem(model, tiny.TASK, parts.forget, parts.retain, classes=(1,))
    with pytest.raises(
        ForgetSetError,
        match=r"2 retained examples belong to a class to be forgotten \(1, 2, 3\); split with `classes=`",
    ):
        Problem(model, tiny.TASK, parts.forget, parts.retain, classes=(1, 2, 3))
    with pytest.raises(ForgetSetError, match="4 retained examples belong to a class to be forgotten"):
        Problem(model, tiny.TASK, retain=data, classes=(1, 2))


def test_a_problem_is_made_without_reading_inputs() -> None:
    class Unreadable:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("read")

    Problem(torch.nn.Linear(1, 4), tiny.TASK, forget=Unreadable(), retain=Unreadable(), classes=(1,))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_model_that_is_not_finite_is_refused(value: float) -> None:
    model = tiny.SHAPES["small_cnn"].build()
    model[1].running_var[2] = value
    with pytest.raises(NonFiniteModelError, match=r"1\.running_var of the model holds NaN or infinity; load a sound"):
        Problem(model, tiny.TASK, classes=(1,))


def test_doctest() -> None:
    results = doctest.testmod(expunge.problem)
    assert results.attempted >= 3
    assert results.failed == 0
