"""The one place where randomness begins.

Every random choice is drawn from a seed derived by hashing the run's seed with a label that says what it is for, such
as a phase and a step. Nothing depends on how much was drawn before, so a run that is resumed needs no generator state.
"""

import hashlib
import os
import random
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

_PLACES: ContextVar[tuple[Tensor, int] | None] = ContextVar("places in the step", default=None)


def derive(seed: int, *labels: str | int) -> int:
    """A seed for one purpose: the first 63 bits of a SHA-256 over `seed` and the labels."""
    text = "\x1f".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *labels))


def seed_globals(seed: int, *labels: str | int) -> None:
    """Seed the generators of Python, numpy and torch, for code that cannot be handed one (dropout, augmentation)."""
    derived = derive(seed, *labels)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    # torch.manual_seed asks every kind of device, present or not; on a CPU that takes longer than a tiny step.
    torch.default_generator.manual_seed(derived)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(derived)


@contextmanager
def at_places(places: Tensor, examples: int) -> Generator[None]:
    """Say, inside, which examples of a step one forward pass has, for objectives that draw a row for each.

    Args:
        places: (micro batch,) int64, of its examples among those that this process has of the term in the step.
        examples: How many those are.
    """
    token = _PLACES.set((places, examples))
    try:
        yield
    finally:
        _PLACES.reset(token)


def places_in_step() -> tuple[Tensor, int] | None:
    """What `at_places` says; None outside a step."""
    return _PLACES.get()


@contextmanager
def reproducible(threads: int | None = None) -> Generator[None]:
    """Use deterministic kernels inside, and leave the caller's generators and settings as they were.

    Kernels without a deterministic form still run; bits are then equal from run to run only as far as those allow.
    Where there is a CUDA device, CUBLAS_WORKSPACE_CONFIG is set unless it is set already, and stays so: cuBLAS reads
    it once.

    Args:
        threads: CPU threads inside; None leaves their number as it is.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    state = random.getstate(), np.random.get_state()
    deterministic = torch.get_deterministic_debug_mode()
    benchmark = torch.backends.cudnn.benchmark
    memory = cast(Any, torch.utils.deterministic)
    filled = memory.fill_uninitialized_memory
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.set_deterministic_debug_mode("warn")
        torch.backends.cudnn.benchmark = False
        memory.fill_uninitialized_memory = False  # a debugging aid that costs a tenth of the time
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(deterministic)
            torch.backends.cudnn.benchmark = benchmark
            memory.fill_uninitialized_memory = filled
            if threads is not None:
                torch.set_num_threads(threads_before)
            random.setstate(state[0])
            np.random.set_state(state[1])
