"""A folder with a job in it, for the tests of the command."""

import json
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner, Result

import tiny
from expunge.cli.app import app
from expunge.networks import mlp
from expunge.tasks import Classification
from expunge.training import Supervised

NETWORK = {"network": "mlp", "options": {"features": tiny.FEATURES, "classes": tiny.CLASSES, "hidden": [16]}}
QUICK_AUDIT = {"oracles": 3, "relearning": {"steps": [0, 2], "forget_examples": 5, "retain_examples": 20}}
QUICK_UNSIR = {"name": "unsir", "noise_images": 4, "noise_steps": 8, "retain_per_class": 10, "batch_size": 32}


@cache
def trained_mlp() -> nn.Module:
    build = partial(mlp, tiny.FEATURES, tiny.CLASSES, hidden=[16])
    recipe = Supervised(build, Classification(tiny.CLASSES), epochs=8, batch_size=32, execution=tiny.QUIET)
    return recipe(tiny.vectors(), 0)


@dataclass
class JobFolder:
    """A folder with a job in it, and the command."""

    folder: Path
    job: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def expunge(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def write(self) -> None:
        (self.folder / "job.yaml").write_text(yaml.safe_dump(self.job), encoding="utf-8")

    def run(self, *arguments: str | Path) -> Result:
        self.write()
        return self.expunge("run", self.folder / "job.yaml", *arguments)

    def record(self) -> dict[str, Any]:
        return json.loads((self.output / "record.json").read_text(encoding="utf-8"))

    def outputs(self) -> set[str]:
        return {path.name for path in self.output.iterdir()} if self.output.exists() else set()

    def save_npz(self, name: str, data: TensorDataset) -> None:
        np.savez(self.folder / name, x=data.tensors[0].numpy(), y=data.tensors[1].numpy())
