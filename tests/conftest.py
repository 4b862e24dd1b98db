"""Fixtures of the whole suite: no network, a fixed number of threads, trained tiny problems."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import tiny
from expunge.problem import Problem


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be other bits; two tests may also run side by side
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the cache of whoever runs the suite; processes that tests start inherit the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps precision and device for the whole process; each test starts anew."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def trained() -> Callable[[str], Problem]:
    """A trained tiny model by the name of its shape, with class 0 to be forgotten; trained once a session."""

    @cache
    def train(name: str) -> Problem:
        shape = tiny.SHAPES[name]
        data, recipe = shape.data(), tiny.recipe(shape)
        return tiny.problem(recipe(data, seed=0), data, recipe=recipe)

    return train


@pytest.fixture
def mlp_problem(trained: Callable[[str], Problem]) -> Problem:
    return trained("mlp")


@pytest.fixture
def cnn_problem(trained: Callable[[str], Problem]) -> Problem:
    return trained("small_cnn")
