"""The commands."""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from expunge.cli.complaints import Command, Commands
from expunge.cli.processes import is_main_process
from expunge.errors import JobError

if TYPE_CHECKING:  # each command imports what it needs: torch takes seconds, which --version and --help need not
    from expunge.cli.runs import Outcome

T = TypeVar("T")


app = typer.Typer(
    cls=Commands,
    help="Remove the influence of chosen training data from a trained model, and measure how far that worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals may hold data that are to be forgotten
)


class Demonstration(StrEnum):
    """What `expunge demo` can show."""

    DIGITS = "digits"
    HOSPITAL = "hospital"
    INPAINTING = "inpainting"
    LANGUAGE = "language"


LevelName = Literal["quick", "standard", "thorough"]
ExecutorName = Literal["auto", "in-process", "processes", "ray", "batched"]
InfluenceName = Literal["gradient", "activation", "hvp", "inverse-hvp"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a run.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"expunge {version('expunge')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show errors in full, with messages that may quote data.")
    ] = False,
) -> None:
    """What all commands have in common."""


@app.command(cls=Command)
def methods(as_json: Json = False) -> None:
    """List every method that can be named in a job."""
    from expunge.cli.methods import installed_methods
    from expunge.cli.summary import method_facts, print_methods

    found = installed_methods()
    if as_json:
        _print_json([method_facts(entry) for entry in found])
    else:
        print_methods(_console(), found)


@app.command(cls=Command)
def run(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job, a YAML file.")],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the job, as in --set method.batch_size=64."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for the results, instead of the job's.")] = None,
    as_json: Json = False,
) -> None:
    """Unlearn as a job file says, and audit the result if it says so."""
    from expunge.cli.job_file import load_job
    from expunge.cli.runs import run_job

    job = load_job(job_file, change or [])
    if output is None and job.output is None:
        raise JobError("output: is missing; name a folder in the job or with --output")
    folder = output if output is not None else job.path(job.output or "")
    _show(run_job(job, folder, resume=resume, say=_say), as_json=as_json)


@app.command(cls=Command)
def recommend(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job, a YAML file.")],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the job, as in --set recipe.epochs=5."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Share of a retrain, such as 20%, or seconds, such as '90 s'; 20% by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try the suitable methods on a request like the job's, and rank them by their distance from retraining."""
    from expunge.cli.job_file import load_job
    from expunge.cli.recommending import print_recommendation, recommend_for, recommendation_json

    found = recommend_for(load_job(job_file, change or []), budget, say=_say)
    _tell(found, recommendation_json, print_recommendation, as_json)


@app.command(cls=Command)
def audit(
    folder: Annotated[Path | None, typer.Argument(metavar="RUN", help="The output folder of a run.")] = None,
    oracles: Annotated[
        int | None, typer.Option(min=2, help="How many oracles to train; by default as in the job, or 5.")
    ] = None,
    shadows: Annotated[
        int | None,
        typer.Option(
            min=0, help="How many shadows to train on everything and unlearn, to tell single examples; by default none."
        ),
    ] = None,
    level: Annotated[
        LevelName | None,
        typer.Option(
            help="How thorough: 3, 10 or 20 oracles, ever more tests, and at last 20 shadows; by default as in the job."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the audit; by default the job's.")] = None,
    executor: Annotated[
        ExecutorName | None,
        typer.Option(help="How oracles are trained; by default as in the job."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Audit models whose truth is known, and tell how often it is found.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="For the self-test: how many models of each kind.")] = 20,
    as_json: Json = False,
) -> None:
    """Measure a run's model against models retrained without the forget set."""
    from expunge.audit import Level
    from expunge.cli.runs import AuditOrder, audit_run

    if self_test:
        given = {"RUN": folder, "--oracles": oracles, "--shadows": shadows, "--level": level, "--seed": seed}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise JobError(f"--self-test brings its own models; leave out {', '.join(unused)}")
        _self_test(executor or "auto", seeds, as_json=as_json)
        return
    if folder is None:
        raise JobError("RUN: is missing; name the output folder of a run, or use --self-test")
    order = AuditOrder(oracles, shadows, None if level is None else Level(level), executor, seed)
    _show(audit_run(folder, order, say=_say), as_json=as_json)


@app.command(cls=Command)
def report(folder: RunFolder, as_json: Json = False) -> None:
    """Write the report of a run again."""
    from expunge.cli.runs import render_run

    path = render_run(folder).report
    if as_json:
        _print_json({"report": str(path)})
    else:
        typer.echo(path)


@app.command(cls=Command)
def compact(folder: RunFolder, as_json: Json = False) -> None:
    """Take what a run has forgotten out of the gradient log that it was forgotten with, for good."""
    from expunge.cli.compact import compact_run, compacted_json, print_compacted

    _tell(compact_run(folder), compacted_json, print_compacted, as_json)


@app.command(cls=Command)
def demo(
    story: Annotated[
        Demonstration,
        typer.Argument(
            metavar="digits|hospital|inpainting|language",
            help="`digits`: a network forgets a class. `hospital`: patients leave a model, with a certificate. "
            "`inpainting`: a model that restores halves of digits forgets one of them. "
            "`language`: a small GPT-2 forgets a person.",
        ),
    ] = Demonstration.DIGITS,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; expunge-demo, or expunge-demo-hospital and so on, by default."),
    ] = None,
    oracles: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="How many oracles to compare with, 3 at least for a verdict; by default 6, of images 4, of text 3.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a small model on bundled data, make it forget, and show how far that worked."""
    folder = output or Path("expunge-demo" if story is Demonstration.DIGITS else f"expunge-demo-{story.value}")
    match story:
        case Demonstration.DIGITS:
            from expunge.cli.demo import run_demo

            _show(run_demo(folder, oracles=oracles or 6, seed=seed, say=_say), as_json=as_json)
        case Demonstration.HOSPITAL:
            from expunge.cli.hospital import facts, run_hospital
            from expunge.cli.hospital_summary import print_hospital

            _tell(run_hospital(folder, oracles=oracles or 6, seed=seed, say=_say), facts, print_hospital, as_json)
        case Demonstration.INPAINTING:
            from expunge.cli.demo_inpainting import restoring_json, run_inpainting
            from expunge.cli.demo_inpainting_summary import print_inpainting

            restored = run_inpainting(folder, oracles=oracles or 4, seed=seed, say=_say)
            _tell(restored, restoring_json, print_inpainting, as_json)
        case Demonstration.LANGUAGE:
            from expunge.cli.demo_language import run_language, story_json
            from expunge.cli.demo_language_summary import print_language

            _tell(run_language(folder, oracles=oracles or 3, seed=seed, say=_say), story_json, print_language, as_json)


@app.command(cls=Command)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all that is kept.")] = False,
    as_json: Json = False,
) -> None:
    """Show the folder in which trained reference models are kept, or empty it."""
    from expunge.cli.cache import cache_facts, print_cache

    facts = cache_facts(empty=clear)
    if as_json:
        _print_json(facts)
    else:
        print_cache(_console(), facts)


@app.command(cls=Command)
def influence(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job, a YAML file.")],
    kind: Annotated[InfluenceName, typer.Option(help="What is compared.")] = "gradient",
    log: Annotated[
        Path | None,
        typer.Option(help="Folder of the gradient log; by default the job's state, else gradients at the model."),
    ] = None,
    layers: Annotated[
        list[str] | None, typer.Option(help="Layers that count, such as embedding or block:0-3; several may be given.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many examples to show.")] = 20,
    damping: Annotated[
        float | None, typer.Option(help="Of inverse-hvp: what is added to the curvature; by default 0.1.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Of inverse-hvp: most products with the curvature; by default 100.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of inverse-hvp: largest error, relative; by default 0.01.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score retained examples by what they have to do with those to be forgotten."""
    from expunge.cli.influence import influence_facts, print_influence
    from expunge.cli.job_file import load_job
    from expunge.states.influence import Influence

    solving = {"damping": damping, "iterations": iterations, "tolerance": tolerance}
    facts = influence_facts(
        load_job(job_file, []),
        kind=Influence(kind),
        log=log,
        layers=layers or [],
        top=top,
        solving={name: value for name, value in solving.items() if value is not None},
    )
    if as_json:
        _print_json(facts)
    else:
        print_influence(_console(), facts)


def _self_test(executor: ExecutorName, seeds: int, *, as_json: bool) -> None:
    from expunge.audit import FleetSettings
    from expunge.audit.self_test import self_test
    from expunge.cli.costs import CostTeller
    from expunge.cli.self_test import digits, print_self_test, self_test_json

    _say(f"Training shams and oracles on scikit-learn's digits and auditing them, {seeds} of each kind")
    outcomes = self_test(digits(), seeds, fleet=FleetSettings(executor), announce=CostTeller(_say))
    if as_json:
        _print_json(self_test_json(outcomes))
    else:
        print_self_test(_console(), outcomes)


def _show(outcome: "Outcome", *, as_json: bool) -> None:
    if not is_main_process():
        return
    from expunge.cli.summary import outcome_json, print_outcome

    if as_json:
        _print_json(outcome_json(outcome))
    else:
        print_outcome(_console(), outcome)


def _tell(story: T, as_facts: Callable[[T], object], show: Callable[[Console, T], None], as_json: bool) -> None:
    if as_json:
        _print_json(as_facts(story))
    else:
        show(_console(), story)


def _console() -> Console:
    # tables in a file or a pipe need not be squeezed into 80 columns
    return Console() if sys.stdout.isatty() else Console(width=120)


def _say(text: str) -> None:
    if is_main_process():
        # a terminal's lines are broken between words; a file's are left whole
        Console(stderr=True).print(escape(text), highlight=False, soft_wrap=not sys.stderr.isatty())


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, indent=2))
