"""Carrying out a job into a folder, and working on such a folder later."""

import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from expunge.audit import AuditSettings, Evidence, FleetSettings, Level, audit
from expunge.audit.auditing import require_measurable
from expunge.audit.choosing import ExecutorName, Expected
from expunge.audit.evidence import EVIDENCE_FILE
from expunge.audit.shadows import require_unlearnable
from expunge.cli.costs import CostTeller
from expunge.cli.job import JOB_FILE, AuditSection, Job
from expunge.cli.job_file import load_job
from expunge.cli.problems import Prepared, audit_settings_of, execution_of, prepare
from expunge.cli.processes import is_main_process
from expunge.cli.recommending import Auto, auto_of, named_method_of, recommended
from expunge.errors import (
    CheckpointError,
    DivergedError,
    ExpungeError,
    JobError,
    MissingNeedError,
    OutputError,
    SavedModelError,
)
from expunge.methods import Method
from expunge.problem import Problem
from expunge.report import REPORT_FILE, write_report
from expunge.storage import ensure_writable, remove_partial_files
from expunge.training import Execution
from expunge.unlearning import KEY_FILE, RECORD_FILE, Choice, Record, Unlearned, read_record, unlearn

Say = Callable[[str], None]
"""Tells the user what is going on."""

CHECKPOINTS = "checkpoints"
DIVERGED = "diverged"


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Where it lies.
        record: What was done.
        evidence: What the audit found, if there was one.
        report: The page to read.
        trained: What was trained for the audit, or read from the cache.
    """

    folder: Path
    record: Record
    evidence: Evidence | None
    report: Path
    trained: Sequence[Expected] = ()


@dataclass(frozen=True)
class AuditOrder:
    """How a saved run is to be audited; what is None follows from the level, or else from the run's job."""

    oracles: int | None = None
    shadows: int | None = None
    level: Level | None = None
    executor: ExecutorName | None = None
    seed: int | None = None


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
    auto, method = auto_of(job), named_method_of(job, read_record(folder) if finished else None)
    settings, execution = audit_settings_of(job), execution_of(job)
    say("Reading the data and the model")
    prepared = prepare(job)
    for note in prepared.notes:
        say(f"  {note}")
    if job.audit is not None:
        require_measurable(
            prepared.problem, seed=job.seed, settings=settings, execution=execution, network=prepared.network
        )
    choice = None
    if method is None:
        found = recommended(job, prepared, auto or Auto(), say)
        method, choice = found.method, found.choice
    method.require(prepared.problem)
    if job.audit is not None and job.audit.shadows:
        require_unlearnable(prepared.problem, method)
    if finished:
        say(f"The unlearned model is already in {folder}")
        unlearned = _same(folder, prepared.problem, job)
    else:
        say(f"Unlearning with {type(method).__name__}")
        unlearned = _unlearn(job, folder, prepared.problem, method, choice, execution, resume=resume)
    kept = _kept_evidence(job, folder, settings, say) if finished else None
    if kept is not None or job.audit is None:
        return _finish(folder, unlearned.record, kept)
    outcome = _audited(folder, unlearned, prepared, settings, execution, job.audit, job.seed, say)
    if finished and is_main_process():
        job.save(folder)  # last: where it differs from what the evidence rests on, the run is audited again
    return outcome


def audit_run(folder: Path, order: AuditOrder, *, say: Say) -> Outcome:
    """Audit a saved run; its problem is read again from the job that was saved with it.

    Raises:
        SavedModelError: The folder holds no run, or the model or the data have changed since.
        MissingNeedError: The job has no recipe to train oracles with.
    """
    read_record(folder)
    job = load_job(folder / JOB_FILE)
    if job.recipe is None:
        raise MissingNeedError(f"an audit retrains oracles; add a `recipe` to {folder / JOB_FILE}")
    level, section = order.level, job.audit or AuditSection()
    settings = level.settings if level is not None else audit_settings_of(job)
    by_level = {} if level is None else {"oracles": level.oracles, "shadows": level.shadows}
    asked = {"oracles": order.oracles, "shadows": order.shadows, "executor": order.executor}
    section = section.model_copy(update=by_level | {name: value for name, value in asked.items() if value is not None})
    execution = execution_of(job)
    ensure_writable(folder)
    say("Reading the data and the model")
    prepared = prepare(job)
    unlearned = _load(folder, prepared.problem, job, shadows=section.shadows)
    seed = order.seed if order.seed is not None else job.seed
    return _audited(folder, unlearned, prepared, settings, execution, section, seed, say)


def render_run(folder: Path) -> Outcome:
    """Write the report of a saved run again.

    Raises:
        SavedModelError: The folder holds no run, or its files do not belong together.
    """
    record = read_record(folder)
    evidence = Evidence.load(folder) if (folder / EVIDENCE_FILE).exists() else None
    return Outcome(folder, record, evidence, write_report(folder, record, evidence))


def _unlearn(
    job: Job,
    folder: Path,
    problem: Problem,
    method: Method,
    choice: Choice | None,
    execution: Execution,
    *,
    resume: bool,
) -> Unlearned:
    _prepare_key(job, folder)
    with _checkpoints(folder) as checkpoints:
        unlearned = unlearn(
            problem, method, seed=job.seed, execution=execution, checkpoint_dir=checkpoints, resume=resume
        ).chosen_by(choice)
        PartialState().wait_for_everyone()
        if is_main_process():
            _save(unlearned, job, folder)
    return unlearned


def _audited(
    folder: Path,
    unlearned: Unlearned,
    prepared: Prepared,
    settings: AuditSettings,
    execution: Execution,
    section: AuditSection,
    seed: int,
    say: Say,
) -> Outcome:
    say(_announcement(section.oracles, section.shadows))
    costs = CostTeller(say)
    evidence = audit(
        unlearned,
        oracles=section.oracles,
        seed=seed,
        settings=settings,
        execution=execution,
        fleet=FleetSettings(section.executor),
        announce=costs,
        shadows=section.shadows,
        subgroups=prepared.subgroups,
        network=prepared.network,
    )
    return replace(_finish(folder, unlearned.record, evidence), trained=costs.fleets)


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
        unlearned.save(folder, key_path=job.key_in(folder))
    except OutputError:
        if not (folder / RECORD_FILE).exists():
            (folder / JOB_FILE).unlink(missing_ok=True)
        raise


def _load(folder: Path, problem: Problem, job: Job, *, shadows: int) -> Unlearned:
    method = named_method_of(job, read_record(folder)) if shadows else None
    unlearned = Unlearned.load(folder, problem, key_path=job.key_in(folder), method=method)
    given = problem.datasets()
    absent = [name for name in unlearned.record.data if name not in given]
    if absent:
        raise SavedModelError(
            f"the job has no {' and no '.join(absent)} set, but {folder / RECORD_FILE} speaks of one; put it back into "
            "the job, or unlearn again"
        )
    return unlearned


def _same(folder: Path, problem: Problem, job: Job) -> Unlearned:
    unlearned = _load(folder, problem, job, shadows=job.audit.shadows if job.audit is not None else 0)
    before = load_job(folder / JOB_FILE)
    if (_asked(before), before.seed) != (_asked(job), job.seed):
        raise JobError(
            f"{folder} holds a run with another method, setting or seed; choose another folder with --output, or "
            f"resume with what {folder / JOB_FILE} says"
        )
    return unlearned


def _asked(job: Job) -> Auto | Method | None:
    """How the job says to forget, however that is spelled."""
    return auto_of(job) or named_method_of(job, None)


def _announcement(oracles: int, shadows: int) -> str:
    text = f"Auditing against {oracles} oracles, trained without the forget set; measuring {oracles + 2} models"
    return f"{text}, and {shadows} shadows before and after they are unlearned" if shadows else text


def _kept_evidence(job: Job, folder: Path, settings: AuditSettings, say: Say) -> Evidence | None:
    """The evidence of a finished run, unless the job asks for another."""
    if not (folder / EVIDENCE_FILE).exists():
        return None
    evidence, before = Evidence.load(folder), load_job(folder / JOB_FILE)
    if job.audit is None:
        return evidence
    wanted = settings.described(pictures=bool(evidence.restorations))
    wanted |= {"oracles": job.audit.oracles, "shadows": job.audit.shadows, "subgroups": list(job.audit.subgroups)}
    changed = [name for name, value in wanted.items() if evidence.settings.get(name) != value]
    changed += ["seed"] if evidence.seed != job.seed else []
    changed += ["recipe"] if before.recipe != job.recipe else []
    changed += ["network"] if (before.audit and before.audit.network) != job.audit.network else []
    changed += ["holdout"] if before.data.holdout != job.data.holdout else []
    if not changed:
        say(f"The evidence is already in {folder}")
        return evidence
    say(f"The evidence in {folder} was gathered with other settings ({', '.join(changed)})")
    return None


def _prepare_key(job: Job, folder: Path) -> None:
    """See that a key that is to lie elsewhere can be written and overwrites no other; a run without its key is lost."""
    path, own = job.key_in(folder), folder / CHECKPOINTS / KEY_FILE
    if job.key is None:
        return
    # a run that was killed while it saved left its own key there
    if path.exists() and not (path.is_file() and own.is_file() and path.read_bytes() == own.read_bytes()):
        raise OutputError(f"key: {path} exists already, perhaps as the key of another run; name a new file")
    ensure_writable(path.parent)


@contextmanager
def _checkpoints(folder: Path) -> Generator[Path]:
    """A folder for checkpoints that goes when they have served, or would stand in the way of a corrected run."""
    path, existed = folder / CHECKPOINTS, folder.exists()
    afresh = not any(path.glob("*.safetensors"))
    try:
        yield path
    except CheckpointError:
        raise
    except BaseException as error:
        useless = _would_fail_again(error, afresh=afresh) or not any(path.glob("*.safetensors"))
        kept = isinstance(error, DivergedError) and any(path.glob("*.safetensors"))
        if is_main_process() and kept:
            _set_aside(path, folder / DIVERGED)
        elif is_main_process() and useless:
            _remove(path)
            if not existed and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if kept:
            raise DivergedError(f"{error}; the last checkpoint before that is kept in {folder / DIVERGED}") from error
        raise
    if is_main_process():
        _remove(path)


def _would_fail_again(error: BaseException, *, afresh: bool) -> bool:
    """Whether checkpoints lead nowhere: the run diverged, or what it was given is wrong and nothing else was saved."""
    if isinstance(error, OutputError):
        return False
    return isinstance(error, DivergedError) or (afresh and isinstance(error, ExpungeError))


def _set_aside(path: Path, place: Path) -> None:
    """Keep checkpoints of a run that diverged where they are not in the way of a corrected one."""
    if place.is_dir():
        shutil.rmtree(place)
    path.rename(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_partial_files(path)
        shutil.rmtree(path)
