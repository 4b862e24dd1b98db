"""Results of a benchmark: cells that are computed once, kept as JSON, and drawn."""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from scipy import stats

from _cifar10 import SIZES, Size
from expunge.storage import write_json

FOLDER = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@dataclass
class Results:
    """The cells of one benchmark at one size; a cell that is there is not computed again.

    A benchmark of several parts has a file for each.
    """

    name: str
    size: Size
    settings: dict[str, Any]
    cells: dict[str, Any] = field(default_factory=dict)
    part: str = ""

    def __post_init__(self) -> None:
        """Read what an earlier run left."""
        if self.path.exists():
            saved = json.loads(self.path.read_text())
            if saved["settings"] != self._settings():
                raise SystemExit(f"{self.path} was computed with other settings; delete it to start afresh")
            self.cells = saved["cells"]

    @property
    def path(self) -> Path:
        """The JSON file."""
        name = f"{self.name}-{self.part}" if self.part else self.name
        return FOLDER / f"{name}-{self.size.name}{'-gpu' if torch.cuda.is_available() else ''}.json"

    @property
    def figure(self) -> Path:
        """The picture beside it."""
        return self.path.with_suffix(".svg")

    def cell(self, key: str, compute: Callable[[], Any]) -> Any:
        """The value of a cell, computed and saved where it is missing."""
        if key not in self.cells:
            self.cells[key] = json.loads(json.dumps(compute())) | {"machine": machine()}
            write_json(
                self.path,
                {
                    "benchmark": self.name,
                    "command": f"make bench BENCH={self.name} SIZE={self.size.name}",
                    "settings": self._settings(),
                    "cells": dict(sorted(self.cells.items())),
                },
            )
            print(f"{key}: {summary(self.cells[key])}", flush=True)
        return self.cells[key]

    def _settings(self) -> dict[str, Any]:
        return json.loads(json.dumps({"size": asdict(self.size), **self.settings}))


def summary(value: Any) -> str:
    """The scalars of a cell in one line."""
    if not isinstance(value, dict):
        return str(value)
    shown = {name: round(entry, 3) if isinstance(entry, float) else entry for name, entry in value.items()}
    return ", ".join(f"{name} {entry}" for name, entry in shown.items() if isinstance(entry, int | float | str))


def size_from_arguments(description: str) -> Size:
    """The size asked for on the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", choices=sorted(SIZES), default="quick")
    return SIZES[parser.parse_args().size]


def interval(values: Sequence[float], digits: int = 3) -> str:
    """Mean with a 95 % t interval."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def draw_ratios(results: Results, ratios: Mapping[str, Sequence[float]], label: str) -> None:
    """A row a way, a point a repetition, and a line where both are equally fast."""
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    panel = figure.subplots()
    for position, values in enumerate(ratios.values()):
        panel.plot(values, [position] * len(values), "o", alpha=0.6)
    panel.axvline(1, color="grey", linewidth=1)
    panel.set_yticks(range(len(ratios)), list(ratios))
    panel.set_xlabel(label)
    figure.savefig(results.figure)
