"""The cache: never a wrong hit, nothing of the data in it, and damage is noticed."""

import functools
import stat
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tiny
from expunge import Algorithm, Optimizer, Supervised
from expunge.audit.cache import Cache, clear, contents, default_folder
from expunge.audit.data_names import DataNames
from expunge.audit.identity import recipe_name, structure_name
from expunge.errors import DataError, OutputError, ReferenceModelError
from expunge.networks import mlp

RATE = 0.1


def name(recipe: Any) -> str:
    return recipe_name(recipe, "cpu")


def from_source(source: str, function: str = "recipe", **scope: Any) -> Callable[..., Any]:
    """A function from fresh source, as another version of a user's file would define it."""
    module = types.ModuleType("users_recipes")
    vars(module).update(scope)
    exec(source, vars(module))
    return vars(module)[function]


def supervised(**changes: Any) -> Supervised:
    settings: dict[str, Any] = {"build": functools.partial(mlp, 12, 4, (16,)), "task": tiny.TASK, "epochs": 2}
    return Supervised(**(settings | changes))


def closing_over(value: Any) -> Callable[..., Any]:
    def recipe(dataset: Any, seed: int) -> Any:
        return dataset, seed, value

    return recipe


def test_the_same_recipe_has_the_same_name() -> None:
    assert name(supervised()) == name(supervised())
    source = "def recipe(data, seed, rate=0.1):\n    return helper(data, (1, 2), rate)\ndef helper(*a):\n    return a\n"
    assert name(from_source(source)) == name(from_source(source))
    assert name(closing_over([1, torch.ones(2)])) == name(closing_over([1, torch.ones(2)]))


def test_what_names_no_module_has_no_name() -> None:
    scope: dict[str, Any] = {"__name__": "users_recipes"}
    exec("def recipe(data, seed): return helper\ndef helper(): return 1\nclass Settings: pass", scope)
    scope["helper"].__module__ = scope["Settings"].__module__ = None
    for value in (scope["helper"], scope["recipe"], functools.partial(scope["recipe"], 1), scope["Settings"]()):
        with pytest.raises(ReferenceModelError, match=r"(helper|Settings) names no module that it comes from"):
            name(value)


@pytest.mark.parametrize(
    "changed",
    [
        supervised(epochs=3),
        supervised(batch_size=64),
        supervised(optimizer=Optimizer(2e-3)),
        supervised(optimizer=Optimizer(1e-3, Algorithm.SGD)),
        supervised(build=functools.partial(mlp, 12, 4, (17,))),
        supervised(build=functools.partial(mlp, 12, 4, hidden=(16,))),
        supervised(augment=lambda batch: batch),
        supervised(task=tiny.Classification(5)),
    ],
)
def test_a_changed_setting_misses(changed: Supervised) -> None:
    assert name(changed) != name(supervised())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def recipe(data, seed): return 1", "def recipe(data, seed): return 2"),
        ("def recipe(data, seed, rate=1): return rate", "def recipe(data, seed, rate=2): return rate"),
        ("def recipe(data, seed, *, rate=1): return rate", "def recipe(data, seed, *, rate=2): return rate"),
        ("def recipe(data, seed): return data + seed", "def recipe(data, seed): return data - seed"),
        ("rate = 1\ndef recipe(data, seed): return rate", "rate = 2\ndef recipe(data, seed): return rate"),
        (
            "def helper(): return 1\ndef recipe(data, seed): return helper()",
            "def helper(): return 2\ndef recipe(data, seed): return helper()",
        ),
        (
            "class recipe:\n  def __call__(self, data, seed): return 1",
            "class recipe:\n  def __call__(self, data, seed): return 2",
        ),
        ("def recipe(data, seed): return [x for x in (1, 2)]", "def recipe(data, seed): return [x for x in (1, 3)]"),
        ("def recipe(data, seed): return seed.real", "def recipe(data, seed): return seed.imag"),
        ("def recipe(data, seed): return lambda: 1", "def recipe(data, seed): return lambda: 2"),
    ],
)
def test_changed_code_misses(one: str, other: str) -> None:
    assert name(from_source(one)) == name(from_source(one))
    assert name(from_source(one)) != name(from_source(other))


def test_a_module_of_the_user_counts_by_what_is_used_of_it() -> None:
    settings = types.ModuleType("users_settings")
    settings.rate, settings.unused = 1, 1  # type: ignore[attr-defined]
    recipe = from_source("def recipe(data, seed): return settings.rate", settings=settings)
    before = name(recipe)
    settings.unused = 2  # type: ignore[attr-defined]
    assert name(recipe) == before
    settings.rate = 2  # type: ignore[attr-defined]
    assert name(recipe) != before


def test_a_closure_value_counts() -> None:
    values = [1, 1.0, True, "1", b"1", None, (1,), [1], {1: 1}, {1}, torch.ones(1), torch.ones(1).double(), mlp]
    names = [name(closing_over(value)) for value in values]
    assert len(set(names)) == len(values)


@pytest.mark.parametrize(
    "source",
    [
        "def recipe(data, seed): return open('weights').read()",
        "import numpy\ndef recipe(data, seed): return numpy.load('weights')",
        "def recipe(data, seed):\n  global count\n  count = 1",
        "import os\ndef recipe(data, seed): return os.environ['RATE']",
        "import time\ndef recipe(data, seed): return time.time()",
        "def recipe(data, seed):\n  import a_module_that_is_not_there",
    ],
)
def test_what_reads_more_than_its_arguments_has_no_certain_name(source: str) -> None:
    with pytest.raises(ReferenceModelError):
        name(from_source(source))


@pytest.mark.parametrize(
    "value", [Path("weights"), torch.Generator(), iter([1]), object()], ids=lambda value: type(value).__name__
)
def test_what_cannot_be_compared_is_refused(value: Any) -> None:
    with pytest.raises(ReferenceModelError, match="cannot be compared"):
        name(closing_over(value))


def test_every_value_of_the_data_counts() -> None:
    data = tiny.vectors(600)  # more than what digests of datasets look at elsewhere
    names = DataNames(b"k")
    changed = TensorDataset(*(tensor.clone() for tensor in data.tensors))
    changed.tensors[0][-7, 3] += 1e-6
    relabelled = TensorDataset(data.tensors[0], data.tensors[1].clone())
    relabelled.tensors[1][5] += 1
    half = torch.utils.data.Subset(data, list(range(0, len(data), 2)))
    alike = TensorDataset(*(tensor[::2].clone() for tensor in data.tensors))
    assert len({names.of(one) for one in (data, changed, relabelled, half)}) == 4
    assert names.of(half) == DataNames(b"k").of(alike)
    assert names.of(half) != DataNames(b"another").of(half)
    assert names.of(torch.utils.data.Subset(data, [1, 0])) != names.of(torch.utils.data.Subset(data, [0, 1]))
    as_list = tiny.as_tuples(data)
    before = DataNames(b"k").of(as_list)
    as_list[1500] = (as_list[1500][0] + 1e-6, as_list[1500][1])  # type: ignore[index]
    assert DataNames(b"k").of(as_list) != before


def test_data_that_are_drawn_anew_at_each_reading_have_no_name() -> None:
    class Augmented(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return torch.rand(3), 0

    with pytest.raises(DataError, match="each time"):
        DataNames(b"k").of(Augmented([0, 1]))


def test_the_structure_of_a_model_counts_and_its_weights_do_not() -> None:
    assert structure_name(mlp(12, 4)) == structure_name(mlp(12, 4))
    others = [mlp(12, 5), nn.Sequential(*mlp(12, 4), nn.ReLU()), nn.Sequential(nn.LeakyReLU(0.1)), nn.LeakyReLU(0.2)]
    assert len({structure_name(model) for model in [mlp(12, 4), *others]}) == 5


def test_what_is_kept_comes_back_and_is_for_the_owner_only(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path)
    cache.save_model(cache.name("a", 1), {"weight": torch.ones(2)}, {"seconds": 1.5})
    cache.save_arrays(cache.name("s"), {"signal": torch.arange(3)}, {})
    again = Cache.open(tmp_path)
    loaded = again.load_model(again.name("a", 1))
    assert loaded is not None
    assert torch.equal(loaded[0]["weight"], torch.ones(2))
    assert loaded[1] == {"seconds": 1.5}
    arrays = again.load_arrays(again.name("s"))
    assert arrays is not None
    assert torch.equal(arrays[0]["signal"], torch.arange(3))
    assert again.load_model(again.name("a", "1")) is None
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.rglob("*") if path.is_file())
    assert "key" not in repr(again)


def test_names_need_the_key(tmp_path: Path) -> None:
    one, other = Cache.open(tmp_path / "one"), Cache.open(tmp_path / "other")
    assert one.name("a") == Cache.open(tmp_path / "one").name("a")
    assert one.name("a") != other.name("a")


@pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: content[:-3] + b"xyz", lambda _: b""])
def test_a_damaged_entry_is_discarded_with_a_warning(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = Cache.open(tmp_path)
    cache.save_model("n", {"weight": torch.ones(2)}, {})
    (file,) = (tmp_path / "models").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="discarded and made again"):
        assert cache.load_model("n") is None
    assert not file.exists()


def test_a_damaged_key_is_replaced(tmp_path: Path) -> None:
    before = Cache.open(tmp_path)
    (tmp_path / "key").write_bytes(b"short")
    with pytest.warns(UserWarning, match="key"):
        assert Cache.open(tmp_path).key != before.key


def test_clearing_removes_entries_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache.open(tmp_path)
    cache.save_model("m", {"weight": torch.ones(2)}, {})
    cache.save_arrays("s", {"signal": torch.ones(2)}, {})
    cache.checkpoints("u").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("years of work")
    before = clear(tmp_path)
    assert (before.models, before.arrays, before.under_way) == (1, 1, 1)
    assert before.size_bytes > 0
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis.txt"]
    assert contents(tmp_path).size_bytes == 0


def test_the_folder_is_the_platforms_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("EXPUNGE_CACHE_DIR")
    for platform, variable, ending in [
        ("linux", "XDG_CACHE_HOME", "expunge"),
        ("win32", "LOCALAPPDATA", "expunge"),
        ("darwin", "HOME", "Library/Caches/expunge"),
    ]:
        monkeypatch.setattr("sys.platform", platform)
        monkeypatch.setenv(variable, str(tmp_path))
        assert default_folder() == tmp_path / ending


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        Cache.open(tmp_path / "file" / "cache")
