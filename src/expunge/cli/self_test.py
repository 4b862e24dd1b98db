"""The audit's self-test on the command line: its data, and its outcomes as a table or as JSON."""

from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.utils.data import TensorDataset

from expunge.audit.self_test import Outcome, Subject
from expunge.cli.demo import holdout_data, training_data
from expunge.networks import mlp
from expunge.tasks import Classification
from expunge.training import Execution, Supervised


def digits() -> Subject:
    """Scikit-learn's digits as feature vectors, and an MLP."""
    flat = [TensorDataset(data.tensors[0].flatten(1), data.tensors[1]) for data in (training_data(), holdout_data())]
    recipe = Supervised(
        partial(mlp, 64, 10), Classification(10), epochs=12, batch_size=64, execution=Execution(progress=False)
    )
    return Subject(flat[0], flat[1], recipe)


def self_test_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The outcomes for programs."""
    return [
        {
            "model": each.name,
            "retrained": each.truth,
            "found": each.found,
            "of": len(each.verdicts),
            "interval": [each.rate.low, each.rate.high],
            "verdicts": {verdict.value: each.verdicts.count(verdict) for verdict in dict.fromkeys(each.verdicts)},
        }
        for each in outcomes
    ]


def print_self_test(console: Console, outcomes: list[Outcome]) -> None:
    """The outcomes as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "should be", "found different", "95 % interval", "verdicts"):
        table.add_column(heading)
    for each in outcomes:
        counts = {verdict.value: each.verdicts.count(verdict) for verdict in dict.fromkeys(each.verdicts)}
        table.add_row(
            each.name,
            "passed" if each.truth else "caught",
            f"{each.found} of {len(each.verdicts)}",
            f"{each.rate.low:.2f} to {each.rate.high:.2f}",
            ", ".join(f"{verdict} {count}" for verdict, count in counts.items()),
        )
    console.print(table)
