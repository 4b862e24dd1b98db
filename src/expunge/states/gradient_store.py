"""Records in append-only files with an index: whole or absent after a kill, found by id, and taken out by rewriting.

A record is bytes in a chunk file and a line in the index, which is written after them; without the line there is no
record. Every line and every record carries a checksum. Files are for their owner only.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

import xxhash
from typing_extensions import Buffer

from expunge.errors import StateError
from expunge.storage import output_errors, remove_partial_files, write_bytes

INDEX_FILE = "index.jsonl"
_CHUNKS = "chunk-*.bin"
CHUNK_BYTES = 256 * 2**20


class Located(NamedTuple):  # of a plain tuple's speed: opening a log makes one for each of its records
    """Where a record lies.

    Attributes:
        kind: What sort of record it is.
        example: Id of the example that it is of, or -1.
        epoch: The how-manieth pass over the example it is of, from 1 on, or 0.
        step: The optimiser step that it belongs to.
        chunk: Number of the file.
        offset: First byte.
        length: Bytes.
        checksum: XXH3 of the bytes, in 64 bits.
    """

    kind: str
    example: int
    epoch: int
    step: int
    chunk: int
    offset: int
    length: int
    checksum: int


class RecordStore:
    """The records in a folder.

    Attributes:
        records: All that are valid, in the order in which they were written.
        dropped: Lines of the index and bytes of the last chunk that a kill had left unfinished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records, self.dropped = self._read_index()
        self._pending: list[Located] = []
        self._places: dict[tuple[str, int], list[Located]] = {}
        self._file: BinaryIO | None = None
        self._chunk, self._end = 0, 0

    @classmethod
    def create(cls, folder: Path) -> Self:
        """An empty store.

        Raises:
            StateError: There is one already.
        """
        path = folder / INDEX_FILE
        if path.exists():
            raise StateError(f"{folder} already holds a gradient log; open it, or choose another folder")
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, b"", private=True)
        return cls(folder)

    def append(self, kind: str, example: int, epoch: int, step: int, parts: Sequence[Buffer]) -> None:
        """Write a record, valid from the next `commit` on."""
        file = self._opened()
        length, checksum = 0, xxhash.xxh3_64()
        with output_errors(self.folder):
            for part in parts:
                if not memoryview(part).nbytes:  # nothing to write, and no view of it can be cast
                    continue
                view = memoryview(part).cast("B")
                checksum.update(view)
                length += len(view)
                file.write(view)
        self._pending.append(Located(kind, example, epoch, step, self._chunk, self._end, length, checksum.intdigest()))
        self._end += length

    def commit(self, first: str = "") -> None:
        """Make all that was appended valid, records of kind `first` before the others, which may need them."""
        if not self._pending:
            return
        self._pending.sort(key=lambda record: record.kind != first)
        with output_errors(self.folder):
            cast(BinaryIO, self._file).flush()
            with os.fdopen(os.open(self._index, os.O_WRONLY | os.O_APPEND), "ab") as index:
                index.write(b"".join(_line(record) for record in self._pending))
        self.records += self._pending
        self._pending = []
        self._changed()

    def abandon(self) -> None:
        """Forget what was appended and not committed; its bytes are overwritten or cut off."""
        if self._pending and self._file is not None:
            self._end = self._pending[0].offset
            self._pending = []
            self._file.seek(self._end)
            self._file.truncate()

    def close(self) -> None:
        """Let what was committed outlast a power cut, and close the files."""
        self.abandon()
        if self._file is not None:
            with output_errors(self.folder):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                _synchronise(self._index)
            self._file = None

    def read(self, record: Located) -> bytearray:
        """The bytes of a record, and no others.

        Raises:
            StateError: They are damaged.
        """
        try:
            with self._path(record.chunk).open("rb", buffering=0) as file:
                file.seek(record.offset)
                content = bytearray(record.length)
                found = file.readinto(content)
        except OSError as error:
            raise StateError(
                f"{self._path(record.chunk)} cannot be read ({error.strerror}); restore the log"
            ) from error
        if found != record.length or xxhash.xxh3_64_intdigest(content) != record.checksum:
            raise StateError(
                f"an entry in {self._path(record.chunk)} is damaged; restore the folder of the log from a copy, or "
                "leave its example out"
            )
        return content

    def keep(self, wanted: Callable[[Located], bool]) -> int:
        """Take out all records but those wanted, and give the room back.

        Chunks that lose a record are written anew, then the index is replaced at one stroke, then the old chunks go.

        Returns:
            How many bytes the records held that were taken out.
        """
        self.close()
        self._clear_leftovers()
        out = [record for record in self.records if not wanted(record)]
        if not out:
            return 0
        touched = {record.chunk for record in out}
        after, fresh = list[Located](), max(record.chunk for record in self.records) + 1
        for chunk in sorted({record.chunk for record in self.records}):
            held = [record for record in self.records if record.chunk == chunk]
            if chunk not in touched:
                after += held
                continue
            held = [record for record in held if wanted(record)]
            if held:
                after += self._copy(held, fresh)
                fresh += 1
        write_bytes(self._index, b"".join(_line(record) for record in after), private=True)
        self.records = after
        self._changed()
        self._remove_orphans()
        return sum(record.length for record in out)

    def of_example(self, kind: str, example: int) -> list[Located]:
        """The records of one kind of an example, in the order in which they were written."""
        return self._lookup().get((kind, example), [])

    def find(self, kind: str, example: int, epoch: int, step: int) -> Located | None:
        """The record of just this description, if there is one."""
        place = (kind, example) if example >= 0 else (kind, -1 - step)
        return next((each for each in self._lookup().get(place, []) if (each.epoch, each.step) == (epoch, step)), None)

    @property
    def bytes(self) -> int:
        """Bytes of all valid records."""
        return sum(record.length for record in self.records)

    @property
    def _index(self) -> Path:
        return self.folder / INDEX_FILE

    def _lookup(self) -> dict[tuple[str, int], list[Located]]:
        """Records by kind and example, those of no example by kind and step."""
        if not self._places:
            for record in self.records:
                place = record.example if record.example >= 0 else -1 - record.step
                self._places.setdefault((record.kind, place), []).append(record)
        return self._places

    def _changed(self) -> None:
        self._places.clear()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}.bin"

    def _copy(self, held: Iterable[Located], chunk: int) -> list[Located]:
        copied: list[Located] = []
        end = 0
        with output_errors(self._path(chunk)), _private(self._path(chunk)) as file:
            for record in held:
                file.write(self.read(record))
                copied.append(record._replace(chunk=chunk, offset=end))
                end += record.length
            file.flush()
            os.fsync(file.fileno())
        return copied

    def _opened(self) -> BinaryIO:
        """The chunk that is written to; on the first call what a kill left behind is cleared away."""
        if self._file is None:
            self._clear_leftovers()
            self._chunk = max((record.chunk for record in self.records), default=0)
            self._end = max((r.offset + r.length for r in self.records if r.chunk == self._chunk), default=0)
        elif self._end < CHUNK_BYTES or self._pending:
            return self._file
        else:
            self.close()
            self._chunk, self._end = self._chunk + 1, 0
        with output_errors(self._path(self._chunk)):
            self._file = _private(self._path(self._chunk))
            self._file.truncate(self._end)
            self._file.seek(self._end)
        return self._file

    def _clear_leftovers(self) -> None:
        """Remove what a kill left behind, be it of an append or of a deletion: lines, partial files, chunks."""
        remove_partial_files(self.folder)
        if self.dropped:
            write_bytes(self._index, b"".join(_line(record) for record in self.records), private=True)
        self._remove_orphans()

    def _remove_orphans(self) -> None:
        used = {self._path(record.chunk) for record in self.records}
        for path in set(self.folder.glob(_CHUNKS)) - used:
            with suppress(FileNotFoundError):
                path.unlink()

    def _read_index(self) -> tuple[list[Located], int]:
        try:
            lines = self._index.read_bytes().split(b"\n")
        except OSError as error:
            raise StateError(
                f"{self.folder} holds no gradient log ({error.strerror}); pass the folder of one"
            ) from error
        unfinished = int(bool(lines.pop()))  # a finished line ends in a line feed
        texts = [line.rpartition(b"\t") for line in lines]
        whole = [f"{zlib.crc32(text):08x}".encode() == checksum for text, _, checksum in texts]
        if not all(whole[:-1]):
            raise StateError(
                f"line {whole.index(False) + 1} of {self._index} is damaged; restore the folder of the log from a copy"
            )
        if whole and not whole[-1]:
            texts.pop()
            unfinished += 1
        entries: list[list[Any]] = json.loads(b"[" + b", ".join(text for text, _, _ in texts) + b"]")
        records = [Located._make(entry) for entry in entries]
        sizes = {path.name: path.stat().st_size for path in self.folder.glob(_CHUNKS)}
        last = max((record.chunk for record in records), default=0)
        size = sizes.get(self._path(last).name, 0)
        cut = [number for number, each in enumerate(records) if each.chunk == last and each.offset + each.length > size]
        if cut:
            return records[: cut[0]], unfinished + len(records) - cut[0]
        return records, unfinished


def _private(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")


def _line(record: Located) -> bytes:
    text = json.dumps(record).encode()
    return text + f"\t{zlib.crc32(text):08x}\n".encode()


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
