"""One cache for several: entries that are not what their names say, and two processes at once."""

import dataclasses
import multiprocessing
import shutil
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

import tiny
from expunge import Supervised
from expunge.audit import Fleet, FleetSettings, TrainingJob, shelf
from expunge.networks import mlp
from expunge.storage import digest_model
from expunge.tasks import Classification


@dataclasses.dataclass(frozen=True)
class Slow(Classification):
    def outputs(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        sleep(0.002)
        return super().outputs(model, batch)


RECIPE = Supervised(partial(mlp, 12, 4, (8,)), Slow(4), epochs=8, batch_size=32, execution=tiny.QUIET)


def jobs(seeds: range = range(3)) -> list[TrainingJob]:
    data = tiny.vectors()
    return [TrainingJob(data, seed, f"shadow {seed}") for seed in seeds]


def trained(folder: Path | str, many: list[TrainingJob], recipe: Supervised = RECIPE) -> tuple[list[str], int]:
    """Digests of the models, and how many came from the cache."""
    result = Fleet(recipe, many).train(FleetSettings("in-process", cache=folder), progress=False)
    return [digest_model(model) for model in result.models], result.cached


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "models").iterdir())


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(tmp_path: Path) -> None:
    right, _ = trained(tmp_path, jobs(range(2)))
    first, second = entries(tmp_path)
    shutil.copy(first, second)

    with pytest.warns(UserWarning, match="discarded and made again: it was kept under another name"):
        again, cached = trained(tmp_path, jobs(range(2)))

    assert (again, cached) == (right, 1)


def test_an_entry_of_another_cache_is_not_taken_under_any_name(tmp_path: Path) -> None:
    right, _ = trained(tmp_path / "mine", jobs(range(1)))
    trained(tmp_path / "theirs", jobs(range(5, 6)))
    (ours,), (theirs,) = entries(tmp_path / "mine"), entries(tmp_path / "theirs")
    shutil.copy(theirs, ours.parent)
    assert trained(tmp_path / "mine", jobs(range(5, 6)))[1] == 0, "its name was made with another key"

    shutil.copy(theirs, ours)
    with pytest.warns(UserWarning, match="by another cache"):
        assert trained(tmp_path / "mine", jobs(range(1))) == (right, 0)


def test_with_the_key_of_another_cache_nothing_is_found(tmp_path: Path) -> None:
    trained(tmp_path / "mine", jobs(range(1)))
    trained(tmp_path / "theirs", jobs(range(1)))
    shutil.copy(tmp_path / "theirs" / "key", tmp_path / "mine" / "key")

    assert trained(tmp_path / "mine", jobs(range(1)))[1] == 0


def test_weights_of_another_network_under_the_right_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # two recipes that an error takes for one
        patch.setattr(shelf, "recipe_name", lambda *_: "one name for all")
        trained(tmp_path, jobs(range(1)))
        wider = dataclasses.replace(RECIPE, build=partial(mlp, 12, 4, (9,)))
        with pytest.warns(UserWarning, match="its weights are of another network"):
            models, cached = trained(tmp_path, jobs(range(1)), wider)

    assert (models, cached) == (trained(tmp_path / "other", jobs(range(1)), wider)[0], 0)


def train_beside_another(folder: str, name: str) -> None:
    torch.set_num_threads(1)
    own = Path(folder) / name
    own.touch()
    while len(list(Path(folder).glob("process *"))) < 2:
        sleep(0.01)
    models, _ = trained(Path(folder) / "cache", jobs(), dataclasses.replace(RECIPE, execution=EAGER))
    own.write_text("\n".join(models))


EAGER = dataclasses.replace(tiny.QUIET, checkpoint_seconds=0.0)


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=train_beside_another, args=(str(tmp_path), f"process {number}")) for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0]
    alone, cached = trained(tmp_path / "cache", jobs(), dataclasses.replace(RECIPE, execution=EAGER))
    assert cached == 3
    assert [(tmp_path / f"process {number}").read_text().split() for number in range(2)] == [alone, alone]
    assert alone == trained(tmp_path / "another", jobs())[0]
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*") if "partial" in path.name) == []
    assert not list((tmp_path / "cache").glob("under-way/*"))
