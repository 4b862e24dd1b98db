"""Time and memory of a computation, in a process of its own so that one cannot profit from what another left."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import torch


def apart(compute: Callable[..., dict[str, Any]], *arguments: Any, threads: int) -> dict[str, Any]:
    """What `compute(measure, *arguments)` gives in a fresh process with so many threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_work, compute, threads, *arguments).result()


def measure(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """The result, the seconds, and by how many bytes resident memory rose at most, looked at every 2 ms."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak = max(peak, process.memory_info().rss)
    done.set()
    watcher.join()
    return result, seconds, peak - before


def _work(compute: Callable[..., dict[str, Any]], threads: int, *arguments: Any) -> dict[str, Any]:
    torch.set_num_threads(threads)
    return compute(*arguments)
