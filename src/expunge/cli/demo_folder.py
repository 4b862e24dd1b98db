"""The folder of a demonstration: taken again for the same one, and left alone where it holds anything else."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from expunge.errors import OutputError
from expunge.storage import ensure_writable, write_json


def clear_demonstration(
    folder: Path, mark: str, files: Collection[str], folders: Collection[str], inside: Collection[str] | None = None
) -> None:
    """Remove an earlier demonstration, and mark the folder as that of a new one.

    Args:
        folder: Where it lies; it need not exist.
        mark: Name of the file that says of which demonstration it is: that name without its ending.
        files: Names of its files.
        folders: Names of the folders in it.
        inside: Names of what these may hold, where that is known.

    Raises:
        OutputError: The folder cannot be written, or holds anything else.
    """
    if folder.is_dir() and any(folder.iterdir()):
        strange = {path.name for path in folder.iterdir()} - {mark, *files, *folders}
        if inside is not None:
            there = [folder / each for each in folders if (folder / each).is_dir()]
            strange |= {path.name for each in there for path in each.iterdir()} - {*inside}
        if strange or not _is_marked(folder / mark):
            raise OutputError(
                f"{folder} holds files that are not of a demonstration; choose another folder with --output"
            )
        for each in folders:
            shutil.rmtree(folder / each, ignore_errors=True)
        for each in files:
            (folder / each).unlink(missing_ok=True)
    ensure_writable(folder)
    write_json(folder / mark, {"demonstration": Path(mark).stem})


def _is_marked(mark: Path) -> bool:
    if not mark.is_file():
        return False
    try:
        return json.loads(mark.read_text(encoding="utf-8")).get("demonstration") == mark.stem
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        return False
