"""Files are whole or absent, tensors survive bit for bit, digests tell everything apart."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expunge.errors import OutputError, SavedModelError
from expunge.storage import (
    claimed,
    digest_model,
    digest_tensors,
    ensure_writable,
    read_tensors,
    remove_partial_files,
    update_digest,
    write_bytes,
    write_files,
    write_json,
    write_once,
    write_tensors,
    write_text,
)


def failing(number: int, code: int = errno.ENOSPC) -> Callable[..., Any]:
    """An fsync that fails from the given call on, as a full disk does."""
    calls = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return fsync


def test_written_content_is_read_back(tmp_path: Path) -> None:
    write_bytes(tmp_path / "deep" / "er" / "file", b"\x00\xff")
    write_text(tmp_path / "text", "Grüße")
    write_json(tmp_path / "data.json", {"a": [1, 2.5, None]})
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == b"\x00\xff"
    assert (tmp_path / "text").read_text("utf-8") == "Grüße"
    assert (tmp_path / "data.json").read_text() == '{\n  "a": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "deep", "text"]


def test_private_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    write_bytes(tmp_path / "key", b"secret", private=True)
    write_bytes(tmp_path / "open", b"public")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "open").stat().st_mode & stat.S_IRUSR
    write_bytes(tmp_path / "open", b"secret now", private=True)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some space or choose another folder"),
        (errno.EDQUOT, "the disk quota is used up; free some space"),
        (errno.EACCES, "there is no permission to write there; choose a folder of your own"),
        (errno.EROFS, "that file system is read-only; choose another folder"),
        (errno.EIO, "Input/output error; choose another folder"),
    ],
)
def test_failures_leave_the_old_file(code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, "fsync", failing(1, code))
    with pytest.raises(OutputError, match=r"cannot write .*file: ") as failure:
        write_bytes(path, b"new")
    assert words in str(failure.value)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_several_files_are_written_together_or_not_at_all(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {tmp_path / "a": b"old a", tmp_path / "b": b"old b"}
    write_files(old)
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(OutputError, match="the disk is full"):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"2", tmp_path / "c": b"3"})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_the_folder_reaches_the_disk_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"2", tmp_path / "c" / "d": b"3"})
    assert events == [*["file"] * 3, *["rename"] * 3, *["folder"] * 2]


@pytest.mark.parametrize(("code", "harmless"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_file_systems_that_sync_no_folders_serve_too(
    code: int, harmless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(2, code))
    if harmless:
        write_bytes(tmp_path / "file", b"new")
    else:
        with pytest.raises(OutputError, match=r"cannot write .*Input/output error"):
            write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_killed_rename_leaves_only_what_can_be_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())
    (tmp_path / ".expunge-partial-abc").touch()
    (tmp_path / "mine").touch()
    remove_partial_files(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.touch()
    for attempt in (lambda: write_bytes(blocker / "file", b""), lambda: ensure_writable(blocker / "folder")):
        with pytest.raises(OutputError, match=r"cannot write .*choose another folder"):
            attempt()
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path, b"over a folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["blocker"]


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_such_number(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"value": value})
    assert not list(tmp_path.iterdir())


TENSORS = {
    "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).half(),
    "brain": torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "strided": torch.arange(12.0).reshape(3, 4).T,
    "number": torch.tensor(7),
    "nothing": torch.empty(0, 3),
    "truth": torch.tensor([True, False]),
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
}


def test_tensors_survive_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(4)
    tensors = {**TENSORS, "tied": shared, "tied too": shared}
    write_tensors(tmp_path / "file", tensors, {"words": ["a", 1]})
    read, metadata = read_tensors(tmp_path / "file")
    assert metadata == {"words": ["a", 1]}
    assert read.keys() == tensors.keys()
    assert digest_tensors(read) == digest_tensors(tensors)
    assert read["strided"].shape == (4, 3)


@pytest.mark.parametrize("metadata", [None, {}, [1.5], "text"])
def test_metadata_are_optional(metadata: Any, tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": torch.ones(1)}, metadata)
    assert read_tensors(tmp_path / "file")[1] == metadata


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(20)]  # safetensors orders keys of metadata anew at each call
    for file in files:
        write_tensors(file, {"b": torch.ones(2), "a": torch.zeros(3, dtype=torch.long)}, {"words": [1, 2.5]})
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("signed", ["[]", "5", "{}", '{"digest": 5}', '{"digest": "x", "json": 5}', "text"])
def test_metadata_of_another_form_are_damage(signed: str, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "file", metadata={"expunge": signed})
    with pytest.raises(SavedModelError, match=r"file is damaged or is not a safetensors file"):
        read_tensors(tmp_path / "file")


def test_damage_is_noticed_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"weight": torch.arange(6.0)}, {"note": "here"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(
            SavedModelError, match=r"(?s)is damaged or is not a safetensors file.*restore it from a copy, or run again"
        ):
            read_tensors(path)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncation_is_noticed(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"weight": torch.arange(6.0)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SavedModelError, match="is damaged"):
        read_tensors(path)


def test_absent_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match=r"there is no file .*absent; pass the folder that the run was saved to"):
        read_tensors(tmp_path / "absent")
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(SavedModelError, match="does not have the digest"):
        read_tensors(tmp_path / "foreign")


def test_digests_tell_names_types_shapes_and_bits_apart() -> None:
    weight = torch.arange(6.0)
    variants = [
        {"a": weight},
        {"b": weight},
        {"a": weight.double()},
        {"a": weight.reshape(2, 3)},
        {"a": weight.nextafter(torch.tensor(9.0))},
        {"a": weight, "b": torch.empty(0)},
        {},
    ]
    assert len({digest_tensors(each) for each in variants}) == len(variants)
    assert digest_tensors({"a": weight, "b": weight}) == digest_tensors({"b": weight.clone(), "a": weight})
    assert digest_tensors({"a": torch.tensor([0.0])}) != digest_tensors({"a": torch.tensor([-0.0])})


def test_digest_of_a_sequence_depends_on_where_it_is_cut() -> None:
    digests: set[str] = set()
    for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""]):
        state = hashlib.sha256()
        for part in parts:
            update_digest(state, part)
        digests.add(state.hexdigest())
    assert len(digests) == 4


def test_digest_of_a_model_counts_buffers_too() -> None:
    model = torch.nn.BatchNorm1d(3)
    before = digest_model(model)
    model.running_mean.add_(1e-3)
    assert digest_model(model) != before


def test_weights_of_another_program_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.arange(6.0)}, path)

    tensors, metadata = read_tensors(path, foreign=True)

    assert torch.equal(tensors["weight"], torch.arange(6.0))
    assert metadata is None
    with pytest.raises(SavedModelError, match="does not have the digest"):
        read_tensors(path)


def test_of_many_that_write_once_one_succeeds_and_all_read_it(tmp_path: Path) -> None:
    offers = [bytes([number]) * 32 for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        read = set(pool.map(lambda content: write_once(tmp_path / "key", content), offers))

    assert len(read) == 1
    assert read <= set(offers)
    assert write_once(tmp_path / "key", b"late") in read
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="locks of folders are of POSIX systems")
def test_a_folder_is_claimed_once_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "folder") as first:
        with claimed(tmp_path / "folder") as second:
            assert (first, second) == (True, False)
        assert (tmp_path / "folder").is_dir()
    assert not (tmp_path / "folder").exists()
    with claimed(tmp_path / "folder") as again:
        (tmp_path / "folder" / "checkpoint").touch()
        assert again
    assert (tmp_path / "folder" / "checkpoint").exists()
