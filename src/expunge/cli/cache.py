"""Showing and emptying the folder of trained models."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from expunge.audit.cache import Contents, clear, contents, default_folder


def cache_facts(*, empty: bool) -> dict[str, Any]:
    """The cache for programs; it is emptied first where that is asked for.

    Raises:
        OutputError: Something cannot be removed.
    """
    folder = default_folder()
    removed = clear(folder) if empty else None
    return {"folder": str(folder), **_plain(contents(folder)), "removed": _plain(removed) if removed else None}


def print_cache(console: Console, facts: dict[str, Any]) -> None:
    """The cache for people."""
    console.print(f"Folder: [bold]{escape(str(Path(facts['folder'])))}[/bold]", soft_wrap=True)
    if facts["removed"]:
        before = facts["removed"]
        console.print(
            f"Removed {before['models']} models, {before['arrays']} sets of arrays and {before['under_way']} models "
            f"under way, {_size(before['size_bytes'])}."
        )
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("what")
    table.add_column("how many", justify="right")
    table.add_row("models", str(facts["models"]))
    table.add_row("sets of arrays", str(facts["arrays"]))
    table.add_row("models under way", str(facts["under_way"]))
    table.add_row("size", _size(facts["size_bytes"]))
    console.print(table)
    console.print(
        "Models trained on a forget set carry its influence: once a request is closed, empty the folder with "
        "`expunge cache --clear`.",
        soft_wrap=True,
    )


def _plain(found: Contents) -> dict[str, int]:
    return {
        "models": found.models,
        "arrays": found.arrays,
        "under_way": found.under_way,
        "size_bytes": found.size_bytes,
    }


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    unit = min(int(math.log(count, 1000)), 3)
    return f"{count / 1000**unit:.1f} {('KB', 'MB', 'GB')[unit - 1]}"
