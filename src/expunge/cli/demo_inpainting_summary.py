"""The demonstration of images on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.cli.demo_inpainting import Restoring
from expunge.cli.summary import print_outcome
from expunge.report.restorations import COLUMNS, restoration_note, restoration_rows


def print_inpainting(console: Console, story: Restoring) -> None:
    """What was found, and how well each model restores what."""
    print_outcome(console, story.outcome)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column)
    for row in restoration_rows(story.evidence.restorations):
        table.add_row(*map(escape, row))
    console.print("\nWhat is restored of hidden halves:")
    console.print(table)
    console.print(f"[dim]{escape(restoration_note(story.evidence.restorations))}[/dim]")
    console.print(
        f"\nThe page [bold]{escape(str(story.outcome.report))}[/bold] shows halves of unseen digits beside what each "
        "model makes of them. An oracle never saw a forgotten digit and restores it all the same, as one it knows.",
        soft_wrap=True,
    )
