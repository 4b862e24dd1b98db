"""Trained models and small arrays kept on disk, under names that say nothing to anyone without the folder's key.

A name is a keyed digest of all that a model's weights follow from: recipe, data, seed, and the versions of what trains
it. No data are kept. What was trained on a forget set does carry its influence, so empty the folder when a request is
closed (`expunge cache --clear`).
What a recipe is, `expunge.audit.identity` tells; where that cannot be told with certainty, nothing is cached.
"""

import hashlib
import hmac
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from expunge.errors import ExpungeWarning, OutputError, SavedModelError
from expunge.storage import (
    claimed,
    ensure_writable,
    read_tensors,
    tensors_bytes,
    update_digest,
    write_bytes,
    write_once,
)

KEY_FILE = "key"
FOLDER_VARIABLE = "EXPUNGE_CACHE_DIR"

_MODELS, _ARRAYS, _UNDER_WAY = "models", "arrays", "under-way"
_KEY_BYTES = 32


def default_folder() -> Path:
    """`EXPUNGE_CACHE_DIR`, or `expunge` in the platform's folder for a user's caches."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "expunge"


@dataclass(frozen=True)
class Contents:
    """What lies in a cache.

    Attributes:
        models: Trained models.
        arrays: Sets of small arrays, such as signals.
        under_way: Models whose training was interrupted.
        size_bytes: All of them together.
    """

    models: int
    arrays: int
    under_way: int
    size_bytes: int


@dataclass(frozen=True)
class Cache:
    """One folder of trained models.

    Attributes:
        folder: Where it is.
        key: The secret of its names; it lies in the folder, readable by the owner only.
    """

    folder: Path
    key: bytes = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path | None = None) -> "Cache":
        """Open a folder, which is made where it is missing.

        Args:
            folder: By default `default_folder()`.

        Raises:
            OutputError: It cannot be written or read.
        """
        path = default_folder() if folder is None else Path(folder).expanduser()
        ensure_writable(path)
        return cls(path, _key_in(path))

    def name(self, *parts: str | bytes | int) -> str:
        """A keyed digest of these parts, in hexadecimal."""
        state = hmac.new(self.key, digestmod=hashlib.sha256)
        for part in parts:
            update_digest(state, part if isinstance(part, bytes) else f"{type(part).__name__} {part}".encode())
        return state.hexdigest()

    def load_model(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and what is noted of them, or None where there are none; a damaged entry is discarded."""
        found = self._load(self._file(_MODELS, name))
        if found is not None:  # a kill may have come between saving a model and removing its checkpoints
            self._remove_checkpoints(name)
        return found

    def save_model(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Keep weights; what interrupted training of them left is removed.

        Raises:
            OutputError: The disk is full, or the folder cannot be written any more.
        """
        self._save(self._file(_MODELS, name), tensors, notes)
        self._remove_checkpoints(name)

    def load_arrays(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Small arrays and what is noted of them, or None; a damaged entry is discarded."""
        return self._load(self._file(_ARRAYS, name))

    def save_arrays(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Keep small arrays, such as signals.

        Raises:
            OutputError: The disk is full, or the folder cannot be written any more.
        """
        self._save(self._file(_ARRAYS, name), tensors, notes)

    def checkpoints(self, name: str) -> Path:
        """The folder for a model under way."""
        return self.folder / _UNDER_WAY / name

    def discard(self, name: str, reason: str) -> None:
        """Remove a model that cannot be used, with a warning."""
        _discard(self._file(_MODELS, name), reason)

    def _file(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.safetensors"

    def _load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not path.exists():
            return None
        try:
            tensors, written = read_tensors(path)
        except SavedModelError as error:
            _discard(path, str(error.__cause__ or error))
            return None
        entry = cast("dict[str, Any]", written) if isinstance(written, dict) else {}
        if entry.get("name") != path.stem:
            _discard(path, "it was kept under another name, by another cache or for another problem, recipe or seed")
            return None
        return tensors, entry["notes"]

    def _save(self, path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        write_bytes(path, tensors_bytes(tensors, {"name": path.stem, "notes": dict(notes)}), private=True)

    def _remove_checkpoints(self, name: str) -> None:
        """Remove them, unless another process is training the same model at this time."""
        folder = self.checkpoints(name)
        if folder.is_dir():
            with claimed(folder) as mine:
                if mine:
                    shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path | None = None) -> Contents:
    """Count what lies in a cache; a folder that is missing is empty. Nothing is written."""
    path = folder or default_folder()
    files = [file for file in _entries(path) if file.is_file()]
    counts = {kind: sum(file.parent.name == kind for file in files) for kind in (_MODELS, _ARRAYS)}
    under_way = path / _UNDER_WAY
    return Contents(
        models=counts[_MODELS],
        arrays=counts[_ARRAYS],
        under_way=sum(1 for _ in under_way.iterdir()) if under_way.is_dir() else 0,
        size_bytes=sum(file.stat().st_size for file in files),
    )


def clear(folder: Path | None = None) -> Contents:
    """Remove every entry and the key; other files in the folder stay.

    Returns:
        What there was.

    Raises:
        OutputError: Something cannot be removed.
    """
    path = folder or default_folder()
    before = contents(path)
    try:
        for kind in (_MODELS, _ARRAYS, _UNDER_WAY):
            if (path / kind).is_dir():
                shutil.rmtree(path / kind)
        (path / KEY_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot remove what lies in {path} ({error.strerror}); see who owns it, or delete the folder yourself"
        ) from error
    return before


def _entries(folder: Path) -> Iterator[Path]:
    for kind in (_MODELS, _ARRAYS, _UNDER_WAY):
        yield from (folder / kind).rglob("*")


def _key_in(folder: Path) -> bytes:
    path = folder / KEY_FILE
    try:
        if path.exists():
            key = path.read_bytes()
            if len(key) == _KEY_BYTES:
                return key
            warnings.warn(
                f"the key {path} is damaged and is replaced; what was cached under it is trained again",
                ExpungeWarning,
                stacklevel=3,
            )
            path.unlink(missing_ok=True)
        return write_once(path, secrets.token_bytes(_KEY_BYTES))
    except OSError as error:
        raise OutputError(
            f"the key {path} of the cache cannot be read ({error.strerror}); make it readable, or choose another "
            f"folder with {FOLDER_VARIABLE}"
        ) from error


def _discard(path: Path, reason: str) -> None:
    path.unlink(missing_ok=True)
    warnings.warn(f"the cached entry {path.name} is discarded and made again: {reason}", ExpungeWarning, stacklevel=4)
