"""Carrying out a job into a folder, and working on such a folder later."""

import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from accelerate.utils import environment

from expunge.audit import Evidence, audit
from expunge.audit.evidence import EVIDENCE_FILE
from expunge.cli.job import JOB_FILE, Job
from expunge.cli.job_file import load_job
from expunge.cli.problems import audit_settings_of, execution_of, method_of, prepare
from expunge.data import digest_dataset
from expunge.errors import CheckpointError, DivergedError, JobError, MissingNeedError, OutputError, SavedModelError
from expunge.methods import Method
from expunge.problem import Problem
from expunge.report import REPORT_FILE, write_report
from expunge.storage import ensure_writable, remove_partial_files
from expunge.training import reproducible, seed_globals
from expunge.unlearning import RECORD_FILE, Record, Unlearned, read_record, unlearn

Say = Callable[[str], None]
"""Tells the user what is going on."""

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Where it lies.
        record: What was done.
        evidence: What the audit found, if there was one.
        report: The page to read.
    """

    folder: Path
    record: Record
    evidence: Evidence | None
    report: Path


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints; known before accelerate has started."""
    return (
        cast(Any, environment).get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0)
        == 0
    )


def run_job(job: Job, folder: Path, *, resume: bool, say: Say) -> Outcome:
    """Unlearn, save, audit and report as a job says.

    A run that was interrupted goes on with `resume`: from its checkpoints, or with the audit alone where the model
    was already saved.

    Raises:
        OutputError: The folder cannot be written, or holds a finished run and is not to be resumed.
        ExpungeError: Whatever else stands in the way; then no result is left behind.
    """
    finished = (folder / RECORD_FILE).exists()
    if finished and not resume:
        raise OutputError(
            f"{folder} already holds a finished run; choose another folder with --output, or pass --resume to complete "
            "what is missing in it"
        )
    method, settings, execution = method_of(job), audit_settings_of(job), execution_of(job)
    say("Reading the data and the model")
    prepared = prepare(job)
    for note in prepared.notes:
        say(f"  {note}")
    method.require(prepared.problem)
    if finished:
        say(f"The unlearned model is already in {folder}")
        unlearned = _same(folder, prepared.problem, method, job)
    else:
        say(f"Unlearning with {type(method).__name__}")
        with _checkpoints(folder) as checkpoints:
            unlearned = unlearn(
                prepared.problem,
                method,
                seed=job.seed,
                execution=execution,
                checkpoint_dir=checkpoints,
                resume=resume,
            )
            PartialState().wait_for_everyone()
            if is_main_process():
                _save(unlearned, job, folder)
    evidence = None
    if finished and (folder / EVIDENCE_FILE).exists():
        evidence = Evidence.load(folder)
    elif job.audit is not None:
        say(f"Auditing: training {job.audit.oracles} oracles without the forget set, and measuring")
        evidence = audit(unlearned, oracles=job.audit.oracles, seed=job.seed, settings=settings, execution=execution)
    return _finish(folder, unlearned.record, evidence)


def audit_run(folder: Path, *, oracles: int | None, seed: int | None, say: Say) -> Outcome:
    """Audit a saved run; its problem is read again from the job that was saved with it.

    Raises:
        SavedModelError: The folder holds no run, or the model or the data have changed since.
        MissingNeedError: The job has no recipe to train oracles with.
    """
    read_record(folder)
    job = load_job(folder / JOB_FILE)
    if job.recipe is None:
        raise MissingNeedError(f"an audit retrains oracles; add a `recipe` to {folder / JOB_FILE}")
    settings, execution = audit_settings_of(job), execution_of(job)
    ensure_writable(folder)
    say("Reading the data and the model")
    unlearned = _load(folder, prepare(job).problem)
    count = oracles if oracles is not None else (job.audit.oracles if job.audit is not None else 5)
    say(f"Auditing: training {count} oracles without the forget set, and measuring")
    evidence = audit(
        unlearned,
        oracles=count,
        seed=seed if seed is not None else job.seed,
        settings=settings,
        execution=execution,
    )
    return _finish(folder, unlearned.record, evidence)


def render_run(folder: Path) -> Outcome:
    """Write the report of a saved run again.

    Raises:
        SavedModelError: The folder holds no run, or its files do not belong together.
    """
    record = read_record(folder)
    evidence = Evidence.load(folder) if (folder / EVIDENCE_FILE).exists() else None
    return Outcome(folder, record, evidence, write_report(folder, record, evidence))


def _finish(folder: Path, record: Record, evidence: Evidence | None) -> Outcome:
    report = folder / REPORT_FILE
    if is_main_process():
        if evidence is not None:
            evidence.save(folder)
        report = write_report(folder, record, evidence)
    return Outcome(folder, record, evidence, report)


def _save(unlearned: Unlearned, job: Job, folder: Path) -> None:
    # the record comes last and marks a finished run
    try:
        job.save(folder)
        unlearned.save(folder)
    except OutputError:
        if not (folder / RECORD_FILE).exists():
            (folder / JOB_FILE).unlink(missing_ok=True)
        raise


def _load(folder: Path, problem: Problem) -> Unlearned:
    unlearned = Unlearned.load(folder, problem)
    sets = {"forget": problem.forget, "retain": problem.retain, "holdout": problem.holdout}
    with reproducible():
        seed_globals(0, "digest")  # as when it was recorded, for data that are augmented at random
        changed = [
            name
            for name, recorded in unlearned.record.data.items()
            if (dataset := sets.get(name)) is None or digest_dataset(dataset, unlearned.key) != recorded.digest
        ]
    if changed:
        raise SavedModelError(
            f"the {' and the '.join(changed)} set are not what {folder / RECORD_FILE} speaks of: the data, or what "
            f"{JOB_FILE} says of them, have changed since; restore them, or unlearn again"
        )
    return unlearned


def _same(folder: Path, problem: Problem, method: Method, job: Job) -> Unlearned:
    unlearned = _load(folder, problem)
    before = load_job(folder / JOB_FILE)
    if (method_of(before), before.seed) != (method, job.seed):
        raise JobError(
            f"{folder} holds a run with another method, setting or seed; choose another folder with --output, or "
            f"resume with what {folder / JOB_FILE} says"
        )
    return unlearned


@contextmanager
def _checkpoints(folder: Path) -> Generator[Path]:
    """A folder for checkpoints that goes when they have served, or when the run failed before there were any."""
    path, existed = folder / CHECKPOINTS, folder.exists()
    try:
        yield path
    except CheckpointError:
        raise
    except BaseException as error:
        # a run that diverged would do so again from its checkpoints
        useless = isinstance(error, DivergedError) or not any(path.glob("*.safetensors"))
        if is_main_process() and useless:
            _remove(path)
            if not existed and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    if is_main_process():
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_partial_files(path)
        shutil.rmtree(path)
