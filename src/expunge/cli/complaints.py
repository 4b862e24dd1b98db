"""How errors, warnings and interruptions of a command reach a person."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from expunge.cli.processes import is_main_process
from expunge.errors import ExpungeError, ExpungeWarning, JobError


class Command(TyperCommand):
    """Turns errors into one red line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _warnings_as_notes():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            again = "; the same command with --resume goes on" if ctx.info_name == "run" else ""
            _complain(f"interrupted{again}")
            raise typer.Exit(130) from error
        except BrokenPipeError:  # whoever reads the output has had enough
            raise
        except Exception as error:
            if ctx.find_root().params["traceback"]:
                raise
            _explain(error)
            raise typer.Exit(2 if isinstance(error, ExpungeError) else 1) from error


_UsageError = cast("type[Exception]", typer.BadParameter.__base__)  # typer names it in no place of its own


class Commands(TyperGroup):
    """Turns what a command cannot be started with into one line of the same kind."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the arguments before the command's name."""
        if not args:  # shows the help, by an error of its own
            return super().make_context(info_name, args, parent, **extra)
        with _one_line():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the command's own arguments, and run it."""
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Generator[None]:
    try:
        yield
    except _UsageError as error:
        said: Any = error
        where = f"; see `{said.ctx.command_path} --help`" if said.ctx is not None else ""
        _complain(f"error: {' '.join(said.format_message().split()).rstrip('.')}{where}")
        raise typer.Exit(2) from error


@contextmanager
def _warnings_as_notes() -> Generator[None]:
    """Print warnings of this library as notes, each once; those of others stay as they are."""
    told = set[str]()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if not issubclass(category, ExpungeWarning):
                others(message, category, *rest, **named)
            elif str(message) not in told:
                told.add(str(message))
                text = " ".join(str(message).split())
                _complain(f"Note: {text[:1].upper()}{text[1:]}", colour="yellow")

        warnings.showwarning = show
        warnings.filterwarnings("always", category=ExpungeWarning)
        yield


def _explain(error: Exception) -> None:
    from expunge.cli.loading import TRACEBACK, UNTOLD, named

    if isinstance(error, JobError):  # a job may have several faults, each in a line of its own
        for line in str(error).splitlines():
            _complain(f"error: {line}")
    elif isinstance(error, ExpungeError):
        _complain(f"error: {' '.join(str(error).split())}")
    else:
        _complain(f"error: unexpected {named(error)}; {UNTOLD}: {TRACEBACK} shows it", everywhere=True)


def _complain(text: str, *, everywhere: bool = False, colour: str = "red") -> None:
    if everywhere or is_main_process():
        Console(stderr=True).print(f"[{colour}]{escape(text)}[/{colour}]", highlight=False, soft_wrap=True)
