"""Checks of settings say which setting it is, what it was, and what it may be."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from expunge.errors import SettingError
from expunge.settings import (
    require_at_least,
    require_below,
    require_between,
    require_one_of,
    require_positive,
    require_whole,
)
from expunge.training import Schedule


@dataclass(frozen=True)
class Settings:
    number: Any = 1.0
    optional: Any = None
    either: float | None = 3.0


CHECKS = {
    "positive": (lambda s, name: require_positive(s, name), "be above 0", [1e-9, 3, np.float64(2)], [0, -1, -0.0]),
    "at least": (lambda s, name: require_at_least(s, 0.5, name), "be at least 0.5", [0.5, 7], [0.49, -1]),
    "below": (lambda s, name: require_below(s, 1, name), "be below 1", [0.99, -5], [1, 1.0, 2]),
    "between": (lambda s, name: require_between(s, 0, 1, name), "lie between 0 and 1", [0.01, 0.99], [0, 1, -1, 2]),
    "whole": (
        lambda s, name: require_whole(s, name, least=2),
        "be a whole number of at least 2",
        [2, 10**9, np.int64(5)],
        [1, 0, -2, 2.0, 2.5],
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_numbers_in_range_pass_and_others_are_named(check: str) -> None:
    require, words, good, bad = CHECKS[check]
    for value in good:
        require(Settings(value), "number")
    for value in [*bad, math.nan, math.inf, None, "3", True, [1]]:
        with pytest.raises(SettingError) as failure:
            require(Settings(value), "number")
        assert str(failure.value).startswith(f"number must {words}")
        assert str(failure.value).endswith(f", not {value!r}")


@pytest.mark.parametrize("check", CHECKS)
def test_none_passes_where_it_is_the_default_or_of_the_type(check: str) -> None:
    require, _, good, bad = CHECKS[check]
    require(Settings(), "optional")
    require(Settings(either=None), "either")
    require(Settings(optional=good[0]), "optional")
    with pytest.raises(SettingError, match="optional must "):
        require(Settings(optional=bad[0]), "optional")


def test_infinity_is_not_called_too_small() -> None:
    with pytest.raises(SettingError, match="number must be above 0 and finite, not inf"):
        require_positive(Settings(math.inf), "number")
    with pytest.raises(SettingError, match="number must be at least 0 and finite, not inf"):
        require_at_least(Settings(math.inf), 0, "number")


def test_choices_are_listed() -> None:
    require_one_of(Settings("no"), "number", ("no", "fp16"))
    require_one_of(Settings(Schedule.COSINE), "number", Schedule)
    with pytest.raises(SettingError, match="number must be one of None, 'cpu', not 'gpu'"):
        require_one_of(Settings("gpu"), "number", (None, "cpu"))
    with pytest.raises(
        SettingError, match=r"one of Schedule\.CONSTANT, Schedule\.COSINE, Schedule\.ONE_CYCLE, not 'cosine'"
    ):
        require_one_of(Settings("cosine"), "number", Schedule)
