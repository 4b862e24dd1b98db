"""`method: auto` and `expunge recommend`: choosing a method for a job, and the ranking as a table or as JSON."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import expunge.methods
from expunge.audit import FleetSettings
from expunge.cli.costs import CostTeller
from expunge.cli.job import Job
from expunge.cli.problems import Prepared, execution_of, method_of, prepare
from expunge.cli.settings import checked_call
from expunge.errors import ExpungeError, JobError, SavedModelError
from expunge.methods import Method
from expunge.recommending import RATES, Budget, Recommendation, recommend
from expunge.report import words
from expunge.unlearning import Choice, Record

AUTO = "auto"


@dataclass(frozen=True)
class Auto:
    """The settings beside `name: auto`.

    Attributes:
        budget: Of the run.
        oracles: Of the rehearsal.
        rates: Multiples of published rates.
    """

    budget: float | str = 0.2
    oracles: int = 3
    rates: tuple[float, ...] = RATES

    def __post_init__(self) -> None:
        """Check the budget, which is read again where it is needed."""
        Budget.read(self.budget)


def auto_of(job: Job) -> Auto | None:
    """How a method is to be chosen; None where the job names one.

    Raises:
        JobError: A setting is unknown or cannot be used.
    """
    if job.method.name != AUTO:
        return None
    given = job.method.model_dump(exclude_unset=True, exclude={"name"})
    return checked_call(Auto, given, "method")


def named_method_of(job: Job, record: Record | None) -> Method | None:
    """The method that a job names, or that was chosen for it as its record says; None where it is yet to be chosen.

    Raises:
        JobError: There is no such method or setting.
        SavedModelError: The record speaks of a method that the library has not got.
    """
    if auto_of(job) is None:
        return method_of(job)
    if record is None:
        return None
    kind = getattr(expunge.methods, record.method, None)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise SavedModelError(f"the record speaks of the method {record.method}, which is not one of the library")
    return checked_call(kind, record.settings, "method")


def recommended(job: Job, prepared: Prepared, auto: Auto, say: Callable[[str], None]) -> Recommendation:
    """Choose a method for a job.

    Raises:
        ExpungeError: Methods cannot be tried on this job; the message says what is missing.
    """
    if job.recipe is None:
        raise JobError("method: auto ranks methods by their distance from retraining; add a `recipe` to the job")
    say(f"Choosing a method: trials on a rehearsal, held against {auto.oracles} oracles of it")
    executor = job.audit.executor if job.audit is not None else "auto"
    try:
        return recommend(
            prepared.problem,
            budget=auto.budget,
            seed=job.seed,
            oracles=auto.oracles,
            rates=auto.rates,
            execution=execution_of(job),
            fleet=FleetSettings(executor),
            announce=CostTeller(say),
        )
    except ExpungeError as error:
        raise type(error)(f"method: auto: {error}") from error


def recommend_for(job: Job, budget: str | None, *, say: Callable[[str], None]) -> Recommendation:
    """Read a job's data and model and choose a method, whichever it names.

    Raises:
        ExpungeError: The job cannot be read, or methods cannot be tried on it.
    """
    auto = auto_of(job) or Auto()
    if budget is not None:
        auto = replace(auto, budget=checked_call(Auto, {"budget": budget}, "--budget").budget)
    say("Reading the data and the model")
    prepared = prepare(job)
    for note in prepared.notes:
        say(f"  {note}")
    return recommended(job, prepared, auto, say)


def recommendation_json(found: Recommendation) -> dict[str, Any]:
    """The ranking for programs."""
    return found.choice.model_dump(mode="json")


def print_recommendation(console: Console, found: Recommendation) -> None:
    """The ranking as a table, and why methods are not in it."""
    print_choice(console, found.choice)
    trial = found.choice.ranking[found.choice.chosen]
    console.print(f"\nNearest: [bold]{trial.method}[/bold] at {trial.rate:g} times its published rate.")


def print_choice(console: Console, choice: Choice) -> None:
    """The best trial of each method as a table, what an oracle comes to, and what was not tried."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("method", "rate ×", "gap", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("method", "") else "right")
    seen: set[str] = set()
    for trial in choice.ranking:
        if trial.method not in seen:
            seen.add(trial.method)
            gap = "" if trial.gap is None else words.number(trial.gap)
            table.add_row(trial.method, f"{trial.rate:g}", gap, f"{trial.seconds:.2f}", trial.note)
    console.print(table)
    if choice.gaps_of_oracles:
        console.print(
            f"[dim]A retrained model: {words.mean(choice.gaps_of_oracles)}. Rehearsed: {choice.rehearsal}.[/dim]"
        )
    for name, reason in choice.left_out.items():
        console.print(f"[dim]not tried: {name}: {escape(reason)}[/dim]", soft_wrap=True)
