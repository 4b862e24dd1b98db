"""What a run came to, as tables on a terminal or as JSON."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.audit import Evidence, Verdict
from expunge.audit.evidence import EVIDENCE_FILE, Measure, Side
from expunge.cli.compact import uncompacted_log
from expunge.cli.costs import after_training, training_facts
from expunge.cli.job import JOB_FILE
from expunge.cli.methods import Installed
from expunge.cli.recommending import print_choice
from expunge.cli.runs import Outcome
from expunge.pretrained import PRETRAINED_FOLDER
from expunge.report import REPORT_FILE, words
from expunge.states import STATE_FILE
from expunge.tasks import Task
from expunge.unlearning import KEY_FILE, MODEL_FILE, RECORD_FILE

_TOKENIZER_FILE = "tokenizer.json"

_STYLES = {Side.INSIDE: "green", Side.UNDECIDED: "yellow", Side.ABOVE: "red", Side.BELOW: "red"}


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The evidence in a table, the verdict in a sentence, and where the files lie."""
    record = outcome.record
    if outcome.evidence is None:
        console.print(f"{record.method} took {words.duration(record.seconds)}; it was not audited.")
    else:
        _print_evidence(console, outcome.evidence)
    if record.choice is not None:
        console.print(f"\nChosen: {record.method}, from {len(record.choice.ranking)} trials on a rehearsal:")
        print_choice(console, record.choice)
    for trained in outcome.trained:
        console.print(f"[dim]{escape(after_training(trained))}[/dim]", soft_wrap=True)
    console.print(f"\nReport: [bold]{escape(str(outcome.report))}[/bold]", soft_wrap=True)
    console.print(_sharing(outcome.folder, outcome.evidence), soft_wrap=True)
    log = uncompacted_log(outcome.folder, record)
    if log is not None:
        console.print(
            f"The gradient log in {escape(str(log))} is as personal as the data, and still holds the gradients of what "
            f"was forgotten. Once the result is accepted, `expunge compact {escape(str(outcome.folder))}` takes them "
            "out; then it can still be audited, but not repeated.",
            soft_wrap=True,
        )


def _sharing(folder: Path, evidence: Evidence | None) -> str:
    """Which of the files that are there may be shared, and which not."""
    weights = f"{PRETRAINED_FOLDER}/" if (folder / PRETRAINED_FOLDER).is_dir() else MODEL_FILE
    named = {KEY_FILE: f"the key ({KEY_FILE})", STATE_FILE: f"the state ({STATE_FILE})"}
    there = [
        name
        for name in (RECORD_FILE, EVIDENCE_FILE, REPORT_FILE, weights, KEY_FILE, STATE_FILE, JOB_FILE)
        if (folder / name).exists()
    ]
    telling = [name for name in there if name in (KEY_FILE, STATE_FILE, JOB_FILE)]
    pictured = []
    if evidence is not None and evidence.grid is not None and evidence.grid.shows != "holdout":
        pictured = [name for name in there if name in (EVIDENCE_FILE, REPORT_FILE)]
    shared = [name for name in there if name not in telling and name not in pictured]
    said = f"Of the folder, {words.listing(shared)} may be shared; "
    if evidence is not None and evidence.grid is not None and pictured:
        said += (
            f"{words.listing(pictured)} may not, for they hold pictures of the {evidence.grid.shows} set and are to be "
            "deleted with it; "
        )
    kept = words.listing([named.get(name, name) for name in telling])
    said += f"{kept} may not, because they help to find out who was forgotten."
    if (folder / PRETRAINED_FOLDER / _TOKENIZER_FILE).exists():
        said += (
            f" {PRETRAINED_FOLDER}/ holds the tokenizer: where it was made from the training texts, its vocabulary can "
            "name people."
        )
    return said


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The same for programs."""
    log = uncompacted_log(outcome.folder, outcome.record)
    return {
        "folder": str(outcome.folder),
        "report": str(outcome.report),
        "record": outcome.record.model_dump(mode="json"),
        "evidence": outcome.evidence.model_dump(mode="json") if outcome.evidence is not None else None,
        "trained": [training_facts(trained) for trained in outcome.trained],
        "uncompacted_log": None if log is None else str(log),
    }


def print_methods(console: Console, methods: list[Installed]) -> None:
    """Every method in a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "paper", "task", "needs", "tier", "maturity", "presets"):
        table.add_column(heading, no_wrap=heading == "name", overflow="fold")
    for entry in methods:
        facts = method_facts(entry)
        if entry.method is None:
            table.add_row(entry.name, f"[red]{escape(entry.complaint or '')}[/red]")
        else:
            table.add_row(*(escape(_joined(facts[str(column.header)])) for column in table.columns))
    console.print(table)


def method_facts(entry: Installed) -> dict[str, Any]:
    """What is known of a method, for programs."""
    method = entry.method
    if method is None:
        return {"name": entry.name, "error": entry.complaint}
    return {
        "name": entry.name,
        "paper": method.paper,
        "task": [task.__name__ for task in method.tasks],
        "needs": sorted(need.value for need in method.needs),
        "tier": method.tier.value,
        "maturity": method.maturity.value,
        "presets": list(method.presets),
    }


def _print_evidence(console: Console, evidence: Evidence) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measure")
    for heading in ("original", "unlearned", "oracles", "band of the oracles"):
        table.add_column(heading, justify="right")
    table.add_column("unlearned lies")
    for measure in evidence.measures:
        table.add_row(*_row(measure))
    for curve in evidence.curves:
        steps = [_steps(curve.relearn_steps.get(name)) for name in ("original", "unlearned")]
        oracles = [taken for name, taken in curve.relearn_steps.items() if name not in ("original", "unlearned")]
        table.add_row(f"{curve.name}, steps", *steps, ", ".join(dict.fromkeys(map(_steps, oracles))), "", "")
    console.print(table)
    console.print()
    colour = "green" if evidence.verdict is Verdict.INDISTINGUISHABLE else "yellow"
    console.print(f"[bold {colour}]Verdict: {evidence.verdict.value}.[/] {escape(evidence.sentence)}", soft_wrap=True)
    cost = evidence.cost
    if cost.share_of_retraining is not None:
        share = words.share_of_retraining(cost.share_of_retraining)
        console.print(f"Cost: {words.duration(cost.seconds)}, {share}")
    for note in evidence.notes:
        console.print(f"[yellow]Note:[/] {escape(words.capital(note))}.", soft_wrap=True)


def _row(measure: Measure) -> list[str]:
    where = "nothing found" if measure.side is Side.INSIDE and measure.limit is None else measure.side.value
    side = f"[{_STYLES[measure.side]}]{where}[/]" if measure.aspect.judged else "[dim]not judged[/]"
    original = words.number(measure.original.value) if measure.original is not None else ""
    return [
        escape(f"{measure.name}, {measure.on}"),
        original,
        f"[bold]{words.number(measure.unlearned.value)}[/bold]",
        words.mean(measure.oracles),
        words.interval(measure.band),
        side,
    ]


def _steps(taken: int | None) -> str:
    return "never" if taken is None else str(taken)


def _joined(value: str | list[str]) -> str:
    if value == [Task.__name__]:
        return "any"
    return value if isinstance(value, str) else ", ".join(value) or "-"
