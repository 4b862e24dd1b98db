"""Finding what a job names: files, and functions of the user's own."""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import expunge
from expunge.cli.settings import nearest
from expunge.errors import ExpungeError, SourceError

TRACEBACK = "`expunge --traceback ...`"
UNTOLD = "its message is not shown because it may quote data"


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
    """The function that `package.module:function` names, run as `users_code` when it is called.

    Raises:
        SourceError: The module cannot be imported, or has no such function.
    """
    return guarded(find_function(reference, base, key), reference, key)


def guarded(function: Callable[..., Any], reference: str, key: str) -> Callable[..., Any]:
    """The same function, run as `users_code`."""
    return partial(_call, function, reference, key)


def find_function(reference: str, base: Path, key: str) -> Callable[..., Any]:
    """The function that `package.module:function` names, as it is; modules beside the job file are found too.

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
        if isinstance(error, ModuleNotFoundError):
            why = f"ModuleNotFoundError: there is no {error.name}); install it, or put it into {base}"
        else:
            why = f"{named(error)}); {UNTOLD}: import the module in Python, or use {TRACEBACK}"
        raise SourceError(f"{key}: the module {module_name!r} cannot be imported ({why}") from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        where = getattr(module, "__file__", None) or "built in"
        raise SourceError(f"{key}: the module {module_name!r} ({where}) has no function {name!r}"
                          f"{nearest(name, functions)}")  # fmt: skip
    return cast("Callable[..., Any]", found)


@contextmanager
def users_code(reference: str, key: str) -> Generator[None]:
    """Turn whatever a function of the user's raises into an error that says where, but not what.

    Raises:
        SourceError: The block failed with something else than an error of the library's own.
    """
    try:
        yield
    except ExpungeError:
        raise
    except Exception as error:
        raise SourceError(
            f"{key}: {reference} failed with {named(error)}; {UNTOLD}: call the function in Python, or use {TRACEBACK}"
        ) from error


def named(error: BaseException) -> str:
    """Type and place of an exception, in the user's own code where that is under way, without its message."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__} at {Path(error.filename or '').name}:{error.lineno}"
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if not _is_installed(place[0])]
    file, line = (own or places)[-1]
    return f"{type(error).__name__} at {Path(file).name}:{line}"


def _call(function: Callable[..., Any], reference: str, key: str, /, *arguments: Any, **options: Any) -> Any:
    with users_code(reference, key):
        return function(*arguments, **options)


def _is_installed(file: str) -> bool:
    path = Path(file)
    return (
        file.startswith("<")
        or bool({"site-packages", "dist-packages"} & set(path.parts))
        or any(path.is_relative_to(folder) for folder in _not_the_users())
    )


def _not_the_users() -> tuple[Path, Path]:
    # no global: recipes refer to this module, and a path among what they refer to would keep them out of the cache
    return Path(expunge.__file__).parent, Path(sysconfig.get_path("stdlib"))


def _kind(folder: bool) -> str:
    return "folder" if folder else "file"
