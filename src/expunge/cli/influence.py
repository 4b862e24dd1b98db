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
from expunge.states import GradientLog
from expunge.states.influence import Influence, influence
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
        log: Folder of a gradient log, if gradients are to come from one.
        layers: Patterns of layers that count; all without any.
        top: How many examples; all without.
        solving: Those of `damping`, `iterations` and `tolerance` that are not to be the defaults of `influence`.

    Raises:
        MissingNeedError: The job has no forget or no retained examples at hand.
        SettingError: `top` is below 1, `solving` is for a kind that solves nothing, or what the scores refuse.
    """
    if top is not None and top < 1:
        raise SettingError(f"top must be at least 1, not {top}")
    if solving and kind is not Influence.INVERSE_HVP:
        raise SettingError(
            f"{', '.join(solving)}: of use for the kind inverse-hvp alone; leave out, or choose that kind"
        )
    problem, execution = prepare(job).problem, execution_of(job)
    if problem.forget is None or problem.retain is None:
        raise MissingNeedError(
            "scores compare retained examples with those to be forgotten; the job names none of one kind"
        )
    run = Run(problem.task, job.seed, execution)
    with reproducible(execution.threads):
        scores = influence(
            run.copy(problem.model).eval(),
            problem.forget,
            problem.retain,
            run,
            kind=kind,
            log=None if log is None else GradientLog.open(log),
            layers=tuple(layers) or ("all",),
            **solving,
        )
    order = scores.argsort(descending=True)[: len(scores) if top is None else top]
    positions = View.of(problem.retain).indices[order]
    return {
        "kind": kind.value,
        "forget_examples": len(problem.forget),
        "retain_examples": len(problem.retain),
        "mean": float(scores.mean()),
        "deviation": float(scores.std()) if len(scores) > 1 else 0.0,
        "highest": [
            {"position": position, "score": score}
            for position, score in zip(positions.tolist(), scores[order].tolist(), strict=True)
        ],
    }


def print_influence(console: Console, facts: dict[str, Any]) -> None:
    """The scores for people."""
    console.print(
        f"Scores ({facts['kind']}) of {facts['retain_examples']} retained examples on the {facts['forget_examples']} "
        f"to be forgotten; mean {facts['mean']:.3g}, standard deviation {facts['deviation']:.3g}.",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("position in the training data", justify="right")
    table.add_column("score", justify="right")
    for each in facts["highest"]:
        table.add_row(str(each["position"]), f"{each['score']:.4g}")
    console.print(table)
