"""Files that are either whole or absent, tensors without pickling, and digests."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Generator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, cast

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor
from typing_extensions import Buffer

from expunge.errors import OutputError, SavedModelError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Digest(Protocol):
    """A running hash, as hashlib makes it."""

    def update(self, data: Buffer, /) -> None:
        """Feed bytes."""
        ...


_TEMPORARY_PREFIX = ".expunge-partial-"
_SIGNED = "expunge"


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Args:
        path: Where to write; the folder is made where it is missing.
        content: The whole content.
        private: Make the file readable by its owner only.

    Raises:
        OutputError: The folder cannot be written or the disk is full. Nothing half-written stays behind.
    """
    write_files({path: content}, private={path} if private else frozenset())


def write_files(contents: Mapping[Path, bytes], *, private: Set[Path] = frozenset()) -> None:
    """Write several files; none of them is touched before all have reached the disk under temporary names.

    Args:
        contents: What to write where; folders are made where they are missing.
        private: Those to make readable by their owner only.

    Raises:
        OutputError: A folder cannot be written or the disk is full. Nothing half-written stays behind.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                staged[path] = path.parent / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
                _write_through(staged[path], content, 0o600 if path in private else 0o666)
        for path, temporary in staged.items():
            with output_errors(path):
                temporary.replace(path)
        for folder in {path.parent for path in contents}:
            with output_errors(folder):
                _sync_folder(folder)
    finally:
        for temporary in staged.values():
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_once(path: Path, content: bytes) -> bytes:
    """Write a file for its owner alone, unless one is there; of several processes that try, one succeeds.

    Returns:
        What the file holds.

    Raises:
        OutputError: The folder cannot be written or the disk is full.
    """
    temporary = path.parent / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_through(temporary, content, 0o600)
            try:
                os.link(temporary, path)  # unlike a rename, fails where there is a file
            except FileExistsError:
                pass
            except OSError:  # a file system without links; then the last one wins
                temporary.replace(path)
            _sync_folder(path.parent)
            return path.read_bytes()
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path) -> Generator[bool]:
    """Try to claim a folder for this process while the block runs; a claim ends with its process, however that ends.

    Args:
        folder: It is made where it is missing, and removed at the end if it is empty.

    Yields:
        Whether the claim succeeded. Without `fcntl`, as on Windows, it always does.

    Raises:
        OutputError: The folder cannot be made.
    """
    with output_errors(folder):
        descriptor = _opened(folder)
    mine = descriptor is None or _locked(descriptor)
    try:
        yield mine
    finally:
        if mine:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8, atomically; see `write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; NaN and infinity are refused because JSON has no such numbers."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def remove_partial_files(folder: Path) -> None:
    """Delete what a killed writer left in `folder`."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)


def ensure_writable(folder: Path) -> None:
    """Raise OutputError unless a file can be written into `folder`, which is made where it is missing."""
    probe = folder / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Any = None) -> None:
    """Write tensors and a JSON-able `metadata` into one safetensors file, atomically.

    Tensors that share memory are written once each, so that tied parameters survive.
    """
    write_bytes(path, tensors_bytes(tensors, metadata))


def tensors_bytes(tensors: Mapping[str, Tensor], metadata: Any = None) -> bytes:
    """What `write_tensors` writes; a digest inside lets `read_tensors` notice damage. Equal content, equal bytes."""
    independent = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(metadata)
    # One key: safetensors writes several in an order that differs from call to call.
    signed = json.dumps({"digest": _digest_content(independent, text), "json": text})
    return save(independent, metadata={_SIGNED: signed})


def read_tensors(path: Path, *, foreign: bool = False) -> tuple[dict[str, Tensor], Any]:
    """Read what `write_tensors` wrote.

    Args:
        path: The file.
        foreign: Accept a file that another program wrote, which has no digest; one that is there is checked.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        SavedModelError: The file is missing, truncated, changed, or not a safetensors file of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore[reportUnknownMemberType]
            metadata = cast(dict[str, str], file.metadata() or {})
            tensors = {name: cast(Tensor, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        digest, text = _signature(metadata)
        if not (foreign and digest is None) and digest != _digest_content(tensors, text):
            raise ValueError("its content does not have the digest that was written with it")
    except FileNotFoundError as error:
        raise SavedModelError(f"there is no file {path}; pass the folder that the run was saved to") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SavedModelError(
            f"{path} is damaged or is not a safetensors file ({error}); restore it from a copy, or run again"
        ) from error
    return tensors, json.loads(text)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in order of name: equal exactly when every bit is equal."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        update_digest(state, name.encode())
        update_digest(state, tensors[name])
    return state.hexdigest()


def digest_model(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters and persistent buffers."""
    return digest_tensors(model.state_dict())


def update_digest(state: Digest, value: Tensor | bytes) -> None:
    """Feed one value to a running hash, with its type and length, so that no two sequences feed alike."""
    if isinstance(value, Tensor):
        dense = value.detach().cpu().contiguous()
        state.update(f"tensor {dense.dtype} {tuple(dense.shape)} ".encode())
        state.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    else:
        state.update(f"bytes {len(value)} ".encode())
        state.update(value)


@contextmanager
def output_errors(path: Path) -> Generator[None]:
    """Turn what the system says when `path` cannot be written into an OutputError with a remedy."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full; free some space or choose another folder",
            errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
            errno.EACCES: "there is no permission to write there; choose a folder of your own",
            errno.EROFS: "that file system is read-only; choose another folder",
        }.get(error.errno or 0, f"{error.strerror or error}; choose another folder")
        raise OutputError(f"cannot write {path}: {reason}") from error


def _signature(metadata: Mapping[str, str]) -> tuple[str | None, str]:
    """Digest and JSON text that were written with the tensors; no digest where another program wrote them."""
    signed: Any = json.loads(metadata[_SIGNED]) if _SIGNED in metadata else None
    if not isinstance(signed, Mapping) or "digest" not in signed:
        return None, "null"
    entries = cast(Mapping[str, Any], signed)
    return str(entries["digest"]), str(entries.get("json"))


def _digest_content(tensors: Mapping[str, Tensor], text: str) -> str:
    state = hashlib.sha256(digest_tensors(tensors).encode())
    update_digest(state, text.encode())
    return state.hexdigest()


def _write_through(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _opened(folder: Path) -> int | None:
    """A descriptor of a folder, made where it is missing; None where there are no locks."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        with suppress(FileNotFoundError):  # another process has just removed it
            return os.open(folder, os.O_RDONLY)


def _locked(descriptor: int) -> bool:
    try:
        cast(Any, fcntl).flock(descriptor, cast(Any, fcntl).LOCK_EX | cast(Any, fcntl).LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Let a rename within `folder` outlast a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # what file systems say that sync no folders
            raise
    finally:
        os.close(descriptor)
