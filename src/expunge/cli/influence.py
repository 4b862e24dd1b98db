"""`expunge influence`: which retained examples have most to do with what a job is to forget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from expunge.cli.job import Job
from expunge.cli.problems import execution_of, prepare
from expunge.data import View
from expunge.errors import MissingNeedError, SettingError
from expunge.problem import DeletionState
from expunge.states import GradientLog
from expunge.states.influence import Influence, influence, require_used
from expunge.training import Run, reproducible


def influence_facts(
    job: Job,
    *,
    kind: Influence,
    log: Path | None,
    layers: Sequence[str],
    top: int | None,
    solving: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Scores of a job's retained examples for programs: positions in the training data, the highest first.

    Args:
        job: What to forget, of which model.
        kind: Of score.
        log: Folder of a gradient log, if gradients are to come from another than that of the job's `state`.
        layers: Patterns of layers that count; all without any.
        top: How many examples; all without.
        solving: Those of `damping`, `iterations` and `tolerance` that are not to be the defaults of `influence`.

    Raises:
        MissingNeedError: The job has no forget or no retained examples at hand.
        SettingError: `top` is below 1, a setting is of no use for the kind, or what the scores refuse.
        StateError: The log belongs to another model than the job's, or lacks a retained example.
    """
    if top is not None and top < 1:
        raise SettingError(f"top must be at least 1, not {top}")
    require_used(kind, [*solving, *(name for name, value in (("log", log), ("layers", layers)) if value)])
    problem, execution = prepare(job).problem, execution_of(job)
    if problem.forget is None or problem.retain is None:
        raise MissingNeedError(
            "scores compare retained examples with those to be forgotten; the job names none of one kind"
        )
    run = Run(problem.task, job.seed, execution)
    logged = _log(kind, log, problem.state)
    with reproducible(execution.threads):
        scores = influence(
            run.copy(problem.model).eval(),
            problem.forget,
            problem.retain,
            run,
            kind=kind,
            log=logged,
            epochs="all" if logged is None else logged.settings.epochs,
            layers=tuple(layers) or ("all",),
            **solving,
        )
    order = scores.argsort(descending=True)[: len(scores) if top is None else top]
    positions = View.of(problem.retain).indices[order]
    return {
        "kind": kind.value,
        "log": None if logged is None else str(logged.folder),
        "forget_examples": len(problem.forget),
        "retain_examples": len(problem.retain),
        "mean": float(scores.mean()),
        "deviation": float(scores.std()) if len(scores) > 1 else 0.0,
        "highest": [
            {"position": position, "score": score}
            for position, score in zip(positions.tolist(), scores[order].tolist(), strict=True)
        ],
    }


def _log(kind: Influence, folder: Path | None, state: DeletionState | None) -> GradientLog | None:
    """The log that was named, else the job's own where the kind takes gradients."""
    if folder is not None:
        return GradientLog.open(folder)
    return state if isinstance(state, GradientLog) and kind is not Influence.ACTIVATION else None


def print_influence(console: Console, facts: dict[str, Any]) -> None:
    """The scores for people."""
    told = f"{facts['kind']}, gradients from the log" if facts["log"] else facts["kind"]
    console.print(
        f"Scores ({told}) of {facts['retain_examples']} retained examples on the {facts['forget_examples']} to be "
        f"forgotten; mean {facts['mean']:.3g}, standard deviation {facts['deviation']:.3g}.",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("position in the training data", justify="right")
    table.add_column("score", justify="right")
    for each in facts["highest"]:
        table.add_row(str(each["position"]), f"{each['score']:.4g}")
    console.print(table)
