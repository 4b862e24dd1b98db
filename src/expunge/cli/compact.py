"""`expunge compact`: what a run was to forget is taken out of the gradient log that it was forgotten with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from expunge.cli.job import JOB_FILE
from expunge.cli.job_file import load_job
from expunge.errors import StateError
from expunge.report import words
from expunge.states import STATE_FILE, GradientLog, load_state
from expunge.storage import ensure_writable
from expunge.unlearning import KEY_FILE, RECORD_FILE, Record, read_record
from expunge.unlearning.record import keyed
from expunge.unlearning.result import read_key


@dataclass(frozen=True)
class Compacted:
    """What was taken out of a log.

    Attributes:
        run: The run's folder.
        log: The log's.
        examples: How many examples were to be taken out.
        freed: Bytes of their entries that were there.
        left: Bytes of the entries of all others.
    """

    run: Path
    log: Path
    examples: int
    freed: int
    left: int


def compact_run(folder: Path) -> Compacted:
    """Delete what a finished run has forgotten from its gradient log; done a second time it completes the first.

    Raises:
        SavedModelError: The folder holds no finished run, or its key is missing.
        StateError: The run used no gradient log, or the log is not the one that it left.
        OutputError: The log cannot be written.
    """
    record = read_record(folder)
    log = _log_of(folder, record)
    if log is None:
        kind = "no state" if record.state is None else f"a state of kind {record.state.kind!r}"
        raise StateError(f"the run in {folder} left {kind} and no gradient log, so there is nothing to compact")
    _require_fits(folder, record, log)
    ensure_writable(log.folder)
    before = log.store.bytes
    after = log.compact()
    return Compacted(folder, log.folder, len(log.hidden), before - after.store.bytes, after.store.bytes)


def uncompacted_log(folder: Path, record: Record) -> Path | None:
    """The gradient log of a run, while it still holds what the run has forgotten.

    Raises:
        StateError: It cannot be read.
    """
    log = _log_of(folder, record)
    return log.folder if log is not None and log.holds_hidden else None


def compacted_json(done: Compacted) -> dict[str, Any]:
    """What was done, for programs."""
    return {
        "run": str(done.run),
        "log": str(done.log),
        "examples": done.examples,
        "freed_bytes": done.freed,
        "left_bytes": done.left,
    }


def print_compacted(console: Console, done: Compacted) -> None:
    """What was done, for people."""
    console.print(
        f"The gradient log in {escape(str(done.log))} holds none of the {done.examples} examples that were forgotten; "
        f"{words.size(done.freed)} were freed, and {words.size(done.left)} of others are left.",
        soft_wrap=True,
    )


def _log_of(folder: Path, record: Record) -> GradientLog | None:
    if record.state is None or record.state.after is None or record.state.kind != GradientLog.kind:
        return None
    state = load_state(folder)
    if not isinstance(state, GradientLog):
        raise StateError(f"{folder / STATE_FILE} does not match {RECORD_FILE}; restore both files from the same run")
    return state


def _require_fits(folder: Path, record: Record, log: GradientLog) -> None:
    """Refuse a log that is not the run's: examples are deleted by number, and its numbers would mean others."""
    job = folder / JOB_FILE
    key = read_key(load_job(job).key_in(folder) if job.exists() else folder / KEY_FILE)
    if record.state is None or keyed(log.digest(), key) != record.state.after:
        raise StateError(
            f"the gradient log in {log.folder} is not what the run in {folder} left: it was replaced, or others were "
            "deleted from it since; restore it from a copy, or, where it is that log, take the forget set out in "
            "Python: `GradientLog.open(log).delete(ids)`, with the ids from its `ids(task, forget)`"
        )
