"""The hospital's demonstration on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.audit import Verdict
from expunge.cli.hospital import Deletion, Stay
from expunge.report import REPORT_FILE, words
from expunge.unlearning import KEY_FILE


def print_hospital(console: Console, stay: Stay) -> None:
    """What each deletion changed beside what retraining would have, what was refused, and where to read on."""
    console.print(_table(stay))
    console.print()
    for each in stay.deletions:
        _print_promise(console, each)
    console.print()
    for request, error in stay.refusals:
        console.print(f"[yellow]Refused[/yellow], {escape(request)}: {escape(error)}.", highlight=False)
    colour = "green" if stay.evidence.verdict is Verdict.INDISTINGUISHABLE else "yellow"
    sentence = escape(stay.evidence.sentence)
    console.print(f"\n[bold {colour}]Audit of the second deletion: {stay.evidence.verdict.value}.[/] {sentence}")
    console.print("\nReports, with every constant and its origin:")
    for each in stay.deletions:
        console.print(f"  [bold]{escape(str(each.folder / REPORT_FILE))}[/bold]", soft_wrap=True)
    console.print(
        f"The state that the next deletion needs lies in {escape(str(stay.deletions[-1].folder))}; like the key "
        f"({KEY_FILE}) it is the owner's alone. Those used before are gone.",
        soft_wrap=True,
    )


def _table(stay: Stay) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("original", justify="right")
    for each in stay.deletions:
        table.add_column(f"without {each.name}", justify="right")
    done = stay.deletions
    start = (words.count(stay.training_patients), words.number(stay.accuracy), words.number(stay.probability))
    table.add_row("patients in the model", start[0], *(words.count(stay.training_patients - d.patients) for d in done))
    table.add_row(
        f"accuracy on {stay.holdout_patients} held out",
        start[1],
        *(f"[bold]{words.number(d.accuracy)}[/]" for d in done),
    )
    table.add_row("  retrained, same noise", "", *(_range(d.reference_accuracy) for d in done))
    table.add_row("probability of the patient's diagnosis", start[2],
                  *(f"[bold]{words.number(d.probability)}[/]" for d in done))  # fmt: skip
    table.add_row("  retrained, same noise", "", *(_range(d.reference_probability) for d in done))
    table.add_row("distance from retraining, measured", "", *(words.number(d.distance) for d in done))
    table.add_row("  bound in the certificate", "", *(words.number(d.certificate.sensitivity) for d in done))
    table.add_row("noise on each weight", "", *(words.number(d.certificate.sigma) for d in done))
    table.add_row("time", "", *(words.duration(d.seconds) for d in done))
    table.add_row("state for the next deletion", "", *(words.size(d.state_bytes) for d in done))
    return table


def _print_promise(console: Console, deletion: Deletion) -> None:
    found = deletion.certificate
    kept = deletion.distance <= found.sensitivity
    mark = "[green]holds[/green]" if kept else "[red]is broken[/red]"
    console.print(
        f"Without {escape(deletion.name)}: [bold]{found.tier.value}[/bold], epsilon {found.epsilon:g}, "
        f"delta {found.delta:.1e}; the bound {mark}, at {deletion.distance / found.sensitivity:.0%} of what it allows.",
        highlight=False,
    )


def _range(values: Sequence[float]) -> str:
    return f"{words.number(min(values))} to {words.number(max(values))}"
