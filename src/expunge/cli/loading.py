"""Finding what a job names: files, and functions of the user's own."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from expunge.cli.settings import nearest
from expunge.errors import SourceError


def existing(path: Path, key: str, *, folder: bool = False) -> Path:
    """`path`, where it exists and is a file, or a folder.

    Raises:
        SourceError: It does not, or is something else.
    """
    if not path.exists():
        kind = "folder" if folder else "file"
        raise SourceError(f"{key}: there is no {kind} {path}; paths are relative to the job file")
    if path.is_dir() != folder:
        raise SourceError(f"{key}: {path} is {'a file' if folder else 'a folder'}; name a {_kind(folder)}")
    return path


def load_function(reference: str, base: Path, key: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules beside the job file are found too.

    Raises:
        SourceError: The module cannot be imported, or has no such function.
    """
    module_name, _, name = reference.partition(":")
    if str(base) not in sys.path:
        # last, so that a file of the user's cannot hide an installed package
        sys.path.append(str(base))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise SourceError(
            f"{key}: the module {module_name!r} cannot be imported ({type(error).__name__}: {error}); install it, or "
            f"put it into {base}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        where = getattr(module, "__file__", None) or "built in"
        raise SourceError(f"{key}: the module {module_name!r} ({where}) has no function {name!r}"
                          f"{nearest(name, functions)}")  # fmt: skip
    return cast("Callable[..., Any]", found)


def _kind(folder: bool) -> str:
    return "folder" if folder else "file"
