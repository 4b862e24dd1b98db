"""Progress bars for people: one display a run, shown only on a terminal."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Bar:
    """One line of the display."""

    display: Progress
    identity: TaskID

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Move forward, with a short note such as the loss."""
        self.display.update(self.identity, advance=amount, note=note)


@contextmanager
def bar(title: str, total: int, *, done: int = 0, enabled: bool = True) -> Generator[Bar]:
    """A bar that is on the screen while the block runs; silent unless standard error is a terminal."""
    console = Console(stderr=True)
    display = Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        disable=not (enabled and sys.stderr.isatty()),
    )
    with display:
        yield Bar(display, display.add_task(title, total=total, completed=done, note=""))
