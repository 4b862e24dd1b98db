"""Worlds in which reversal is measured: an original with its log, models retrained without the forget set, the data."""

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge import (
    Algorithm,
    CausalLM,
    Execution,
    Method,
    Optimizer,
    Problem,
    Run,
    Schedule,
    Supervised,
    Unlearned,
    unlearn,
)
from expunge.cli.biographies import FACTS_EACH, biographies, sentences
from expunge.corpora import Pistol, Row, byte_tokenizer, word_tokenizer
from expunge.data import MapDataset, subset
from expunge.states import GradientLog, GradientRecorder
from expunge.training import over_batches, reproducible

CONTEXT, WORDS = 96, 600
FORGET_EDGES, HOLDOUT_EDGES, RETAIN_EDGES = 1, 2, 12
EXECUTION = Execution(device="cpu", progress=False)


@dataclass(frozen=True)
class Shape:
    """A GPT-2."""

    name: str
    width: int
    blocks: int

    def build(self, words: int, context: int) -> nn.Module:
        """Untrained, without dropout."""
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        shape: dict[str, Any] = {"n_embd": self.width, "n_layer": self.blocks, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(vocab_size=words, n_positions=context, **shape, **still, **ends))


SHAPES = {
    "0.1 M": Shape("0.1 M", 64, 2),
    "0.2 M": Shape("0.2 M", 64, 3),
    "0.4 M": Shape("0.4 M", 80, 4),
    "0.8 M": Shape("0.8 M", 112, 5),
    "1.3 M": Shape("1.3 M", 128, 6),
    "6.5 M": Shape("6.5 M", 256, 8),
}


@dataclass
class World:
    """What one comparison of methods needs.

    Attributes:
        problem: The original, its data, and its log as state.
        recipe: How original and oracles are trained.
        training: Everything that the original was trained on, in the order of the log's ids.
        asked: Which of it is to be forgotten.
        texts: Of the training set.
        edges: Contract of each training example; empty where there are none.
        optimizer: Of the original, as it was after the last step.
        oracles: Retrained without the forget set, with other seeds.
        seconds: That training the original took, with its log.
    """

    problem: Problem
    recipe: Supervised
    training: list[dict[str, Any]]
    asked: list[int]
    texts: list[str]
    edges: list[str]
    optimizer: torch.optim.Optimizer
    oracles: list[nn.Module]
    seconds: float
    losses: dict[str, Tensor] = field(init=False)
    """Per set (oracles, examples)."""

    def __post_init__(self) -> None:
        """Look at the oracles once."""
        self.losses = {name: torch.stack([self.each(model, name) for model in self.oracles]) for name in self.sets}

    @property
    def sets(self) -> dict[str, MapDataset]:
        """Forget, retain and holdout."""
        return self.problem.datasets()

    @property
    def log(self) -> GradientLog:
        """The original's log."""
        assert isinstance(self.problem.state, GradientLog)
        return self.problem.state

    @property
    def run(self) -> Run:
        """For computations outside of `unlearn`."""
        return Run(self.problem.task, 0, EXECUTION)

    def each(self, model: nn.Module, name: str) -> Tensor:
        """Loss of each example of a set: (examples,) float64."""
        task = self.problem.task
        return torch.cat(over_batches(self.run, model, self.sets[name], task.losses, 64)).double()

    @property
    def target(self) -> float:
        """Mean loss of the holdout under the original."""
        return float(self.each(self.problem.model, "holdout").mean())

    @property
    def gap(self) -> float:
        """How far the forget loss of the original is below the target; a millionth where it is not."""
        return max(self.target - float(self.each(self.problem.model, "forget").mean()), 1e-6)

    def measure(self, model: nn.Module, **more: float) -> dict[str, float]:
        """Losses, and distances from the mean oracle in nats, example by example."""
        found: dict[str, float] = {}
        for name in self.sets:
            losses = self.each(model, name)
            apart = (losses - self.losses[name].mean(0)).abs()
            found |= {name: float(losses.mean()), f"D {name}": float(apart.mean())}
            if name == "forget":
                found["largest"] = float(apart.max())
        return found | more

    def floor(self) -> dict[str, float]:
        """The same figures of an oracle against the mean of the others, averaged over oracles."""
        found: dict[str, float] = {}
        for name, losses in self.losses.items():
            others = (losses.sum(0) - losses) / (len(losses) - 1)
            apart = (losses - others).abs()
            found |= {name: float(losses.mean()), f"D {name}": float(apart.mean())}
            if name == "forget":
                found["largest"] = float(apart.amax(1).mean())
        return found

    def unlearned(self, method: Method, problem: Problem | None = None) -> Unlearned:
        """By a method, without its warnings: what they speak of is measured here."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return unlearn(problem or self.problem, method, seed=0, execution=EXECUTION)

    def reversed(self, method: Method, problem: Problem | None = None) -> dict[str, float]:
        """What a reversal gave, with its coefficient and whether the target was reached."""
        started = time.perf_counter()
        result = self.unlearned(method, problem)
        seconds = time.perf_counter() - started
        phase = [each for each in result.record.phases if each.name.startswith("reverse")][-1]
        return self.measure(
            result.model,
            seconds=seconds,
            c=phase.measured["coefficient"],
            reversed=phase.measured["reversed_examples"],
            rounds=float(sum(each.name.startswith("reverse") for each in result.record.phases)),
            reached=float(not any("not reached" in each for each in phase.warnings)),
            repair_steps=float(sum(each.steps for each in result.record.phases if each.name == "repair")),
        )


def pistol_world(shape: Shape, seed: int, base_seed: int, oracles: int, folder: Path) -> World:
    """Contracts: a base that knows others of their kind is taught 13 more, and is to forget one.

    Args:
        shape: Of the model.
        seed: Which contracts are forgotten, retained and held out, and in which order they are taught.
        base_seed: Of the base, and which contracts it knows.
        oracles: How many.
        folder: For the log.
    """
    data, task = pistol()
    order = _shuffled(data.edges, base_seed)
    base = _base(shape, base_seed)
    taught = FORGET_EDGES + HOLDOUT_EDGES + RETAIN_EDGES
    edges = _shuffled(order[:taught], 1000 + seed)
    forget, holdout = edges[:FORGET_EDGES], edges[FORGET_EDGES : FORGET_EDGES + HOLDOUT_EDGES]
    training = [row for row in data.rows if row["edge"] in set(edges) - set(holdout)]
    asked = [place for place, row in enumerate(training) if row["edge"] in forget]
    held = [row for row in data.rows if row["edge"] in holdout]
    recipe = Supervised(
        partial(deepcopy, base),
        task,
        epochs=5,
        batch_size=8,
        optimizer=Optimizer(1e-3, Algorithm.ADAMW, schedule=Schedule.COSINE),
        execution=EXECUTION,
    )
    original = _original(task, recipe, training, seed, folder)
    return _around(original, recipe, training, asked, held, seed, oracles)


def biography_worlds(people: Sequence[int], taught: int, oracles: int, folder: Path) -> Iterator[World]:
    """The demonstration's made-up lives: one original, and a world for each of some people who are to be forgotten."""
    task = CausalLM(word_tokenizer(sentences(), context=32))
    rows = biographies(taught + 12)
    training, held = rows[: FACTS_EACH * taught], rows[FACTS_EACH * taught :]
    recipe = Supervised(
        partial(SHAPES["0.1 M"].build, len(task.tokenizer or ()), 32),
        task,
        epochs=25,
        batch_size=16,
        optimizer=Optimizer(3e-3, Algorithm.ADAMW, schedule=Schedule.ONE_CYCLE),
        execution=EXECUTION,
    )
    original = _original(task, recipe, training, 0, folder)
    for person in people:
        asked = list(range(FACTS_EACH * person, FACTS_EACH * (person + 1)))
        yield _around(original, recipe, training, asked, held, 1 + person, oracles)


@cache
def pistol() -> tuple[Pistol, CausalLM]:
    """The 75 contracts of the second sample, and a task whose tokeniser is made from their text."""
    if not os.environ.get("EXPUNGE_DATA_DIR"):
        raise SystemExit("set EXPUNGE_DATA_DIR to a folder that holds pistol/pistol_sample2.json")
    data = Pistol.read(sample=2)
    texts = [f"Question: {row['question']}\nAnswer: {row['answer']}" for row in data.rows]
    return data, CausalLM(byte_tokenizer(texts, most=WORDS, context=CONTEXT))


@contextmanager
def log_folder() -> Iterator[Path]:
    """A folder for a log that is gone afterwards."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder / "log"
    finally:
        shutil.rmtree(folder)


@cache
def _base(shape: Shape, seed: int) -> nn.Module:
    """Trained on the contracts that no world of this base seed teaches."""
    data, task = pistol()
    known = set(_shuffled(data.edges, seed)[FORGET_EDGES + HOLDOUT_EDGES + RETAIN_EDGES :])
    rows = [row for row in data.rows if row["edge"] in known]
    recipe = Supervised(
        partial(shape.build, len(task.tokenizer or ()), CONTEXT),
        task,
        epochs=10,
        batch_size=16,
        optimizer=Optimizer(2e-3, Algorithm.ADAMW, schedule=Schedule.ONE_CYCLE),
        execution=EXECUTION,
    )
    return recipe(task.tokenized(rows).dataset, seed)


@dataclass(frozen=True)
class _Original:
    model: nn.Module
    log: GradientLog
    optimizer: torch.optim.Optimizer
    seconds: float


def _original(task: CausalLM, recipe: Supervised, rows: Sequence[Row], seed: int, folder: Path) -> _Original:
    """Trained on everything, with a log."""
    training, optimizers = _plain(task, rows), list[torch.optim.Optimizer]()

    def recording(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> GradientRecorder:
        optimizers.append(optimizer)
        log = GradientLog.create(folder, model, task, training, precision="bf16")
        return GradientRecorder(log, model, optimizer, step)

    started = time.perf_counter()
    with reproducible():
        model = recipe.fit(training, Run(task, seed, EXECUTION), recording)
    seconds = time.perf_counter() - started
    return _Original(model, GradientLog.open(folder).sealed(model), optimizers[0], seconds)


def _around(
    original: _Original,
    recipe: Supervised,
    rows: Sequence[Row],
    asked: list[int],
    held: Sequence[Row],
    seed: int,
    oracles: int,
) -> World:
    """What else a world holds."""
    task = cast(CausalLM, recipe.task)
    training, holdout = (_plain(task, each) for each in (rows, held))
    kept = sorted(set(range(len(training))) - set(asked))
    forget, retain = (subset(training, torch.tensor(each)) for each in (asked, kept))
    trained = [recipe(retain, 100 * (seed + 1) + number) for number in range(oracles)]
    problem = Problem(original.model, task, forget, retain, holdout, state=original.log)
    return World(
        problem=problem,
        recipe=recipe,
        training=training,
        asked=asked,
        texts=[f"{row['question']} {row['answer']}" for row in rows],
        edges=[str(row["edge"]) for row in rows if "edge" in row],
        optimizer=original.optimizer,
        oracles=trained,
        seconds=original.seconds,
    )


def _plain(task: CausalLM, rows: Sequence[Row]) -> list[dict[str, Any]]:
    return list(task.tokenized(list(rows)).dataset)


def _shuffled(values: Sequence[str], seed: int) -> list[str]:
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    return [values[place] for place in order.tolist()]
