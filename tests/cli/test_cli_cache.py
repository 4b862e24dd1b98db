import json
from pathlib import Path

import pytest
import torch

from expunge.audit.cache import Cache
from job_folder import JobFolder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one model."""
    folder = tmp_path / "a cache"
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(folder))
    Cache.open(folder).save_model("m", {"weight": torch.ones(100)}, {})
    return folder


def test_folder_entries_and_size_are_shown(jobs: JobFolder, folder: Path) -> None:
    result = jobs.expunge("cache")
    assert result.exit_code == 0
    assert str(folder) in result.stdout
    assert "models 1" in " ".join(result.stdout.split())
    facts = json.loads(jobs.expunge("cache", "--json").stdout)
    assert facts["folder"] == str(folder)
    assert (facts["models"], facts["arrays"], facts["under_way"], facts["removed"]) == (1, 0, 0, None)
    assert facts["size_bytes"] == (folder / "models" / "m.safetensors").stat().st_size


def test_clearing_empties_the_folder(jobs: JobFolder, folder: Path) -> None:
    result = jobs.expunge("cache", "--clear")
    assert "Removed 1 models" in result.stdout
    assert list(folder.iterdir()) == []
    facts = json.loads(jobs.expunge("cache", "--clear", "--json").stdout)
    assert (facts["models"], facts["removed"]["models"]) == (0, 0)


def test_a_cache_that_was_never_used_is_empty_and_not_made(
    jobs: JobFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE_DIR", str(tmp_path / "none"))
    facts = json.loads(jobs.expunge("cache", "--json").stdout)
    assert (facts["models"], facts["size_bytes"]) == (0, 0)
    assert not (tmp_path / "none").exists()
