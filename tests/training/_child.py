"""Runs in processes of their own, to be killed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

# A server that has imported everything makes the processes: starting an interpreter for each would take minutes.
SERVER = multiprocessing.get_context("forkserver")


class Child:
    """A run in a process of its own; `send` is called with the arguments and a `connection` for the result."""

    def __init__(self, send: Callable[..., None], **arguments: Any) -> None:
        self.results, sender = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=send, kwargs=arguments | {"connection": sender})
        self.process.start()
        sender.close()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.is_alive(), f"the run ended with {self.process.exitcode}"
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, "the run ended before it was killed"

    def kill_when(self, condition: Callable[[], bool]) -> None:
        self.wait_until(condition)
        self.kill()

    def result(self) -> str:
        assert self.results.poll(120)
        self.process.join()
        return self.results.recv()


@contextmanager
def served() -> Iterator[None]:
    """The server runs, and finds the modules beside this one."""
    with pytest.MonkeyPatch.context() as patch:
        # A server of Python 3.11 does not take over the path, and goes without what it cannot import.
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        forkserver.ensure_running()
        yield


def modified(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
