"""TOFU and PISTOL for a small GPT-2 that is trained here: what is taught, forgotten and watched, and the models.

Files come from EXPUNGE_DATA_DIR. A base model learns other rows of the same benchmark first, as published models know
their language before they are taught; no forget, retain or holdout row is among them. Originals and oracles go on from
that one base, so an oracle is retrained from the last model that had not met the forget set.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge import Algorithm, CausalLM, Execution, Optimizer, Problem, Schedule, Supervised
from expunge.corpora import Pistol, Row, Tofu, byte_tokenizer
from expunge.methods.idk_dpo import REFUSALS
from expunge.states import GradientLog, log_training
from expunge.storage import read_tensors, write_tensors
from expunge.training import CheckpointFolder, Run, reproducible
from expunge.training.seeds import generator

CACHE = Path(__file__).parent / "cache"
QUIET = Execution(device="cpu", progress=False, threads=1)
SHAPE = {"n_embd": 128, "n_layer": 2, "n_head": 4}
TOFU, PISTOL = "TOFU forget05", "PISTOL A_B"
FORGOTTEN_EDGE, UNSEEN_EDGES = "A_B", ("E2_F2", "E3_F3")  # all three contracts of sale
_WRONG_ANSWERS = 5


@dataclass(frozen=True)
class Lessons:
    """How long models learn.

    Attributes:
        retained_authors: Of TOFU, who are taught and kept; first those for whom wrong answers are published.
        base_authors: Of TOFU, whom the base model learns.
        base_epochs: Of the base model.
        epochs: Of originals and oracles, by benchmark.
        asked: Most rows of each part of model utility.
    """

    retained_authors: int
    base_authors: int
    base_epochs: int
    epochs: Mapping[str, int]
    asked: int


LESSONS = {
    "quick": Lessons(10, 60, 8, {TOFU: 6, PISTOL: 20}, 40),
    "full": Lessons(80, 90, 12, {TOFU: 12, PISTOL: 30}, 400),
}
HOLDOUT_AUTHORS = 10


@dataclass(frozen=True, eq=False)
class Corpus:
    """One benchmark.

    Attributes:
        name: What it is called.
        size: `quick` or `full`.
        task: With a tokeniser made of the benchmark's own text.
        base: What the base model learns.
        forget: What is taught and to be forgotten.
        retain: What is taught besides.
        holdout: Rows of the same kind that nobody is taught.
        asked: The forget rows with wrong answers.
        utility: The parts of model utility, where the benchmark has it.
        watched: Retained rows by how near they are to the forget set, where the benchmark says.
        refusals: What may be answered instead.
    """

    name: str
    size: str
    task: CausalLM
    base: list[Row]
    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]
    asked: list[Row]
    utility: Mapping[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    watched: Mapping[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    refusals: tuple[str, ...] = REFUSALS

    @property
    def folder(self) -> Path:
        """Where its models are kept."""
        return CACHE / f"language-{self.size}" / self.name.replace(" ", "-")

    @property
    def recipe(self) -> Supervised:
        """How originals and oracles are made from the base."""
        return Supervised(
            partial(copy.deepcopy, base_of(self)),
            self.task,
            epochs=LESSONS[self.size].epochs[self.name],
            batch_size=16,
            optimizer=Optimizer(2e-3, Algorithm.ADAMW, schedule=Schedule.ONE_CYCLE, clip_norm=1.0),
            execution=QUIET,
        )


@dataclass(frozen=True)
class Taught:
    """A model, what its training cost in seconds, and the log of it if there is one."""

    model: nn.Module
    seconds: float
    log: GradientLog | None = None


def corpora(size: str) -> list[Corpus]:
    """Both benchmarks, the quicker first."""
    return [pistol(size), tofu(size)]


@cache
def tofu(size: str) -> Corpus:
    """TOFU's forget05: ten authors of 200 are to be forgotten."""
    lessons, read = LESSONS[size], Tofu.read()
    places = read.forget(5).tolist()
    gone = {read.rows[place]["author"] for place in places}
    perturbed = {row["question"]: row for row in (*read.perturbed("forget10"), *read.perturbed("retain"))}
    known = {row["author"] for row in read.rows if row["question"] in perturbed} - gone
    first = [author for author in read.authors if author in known][:20]
    others = [author for author in read.authors if author not in gone and author not in first]
    order = torch.randperm(len(others), generator=generator(0, "authors")).tolist()
    drawn = iter(others[number] for number in order)
    retained = [*first, *(next(drawn) for _ in range(lessons.retained_authors - len(first)))][
        : lessons.retained_authors
    ]
    unseen, base = ([next(drawn) for _ in range(count)] for count in (HOLDOUT_AUTHORS, lessons.base_authors))
    world = {part: read.perturbed(part) for part in ("real_authors", "world_facts")}
    facts: list[Row] = [
        {"question": row["question"], "answer": row["answer"]} for rows in world.values() for row in rows
    ]
    forget, retain = [read.rows[place] for place in places], _by(read.rows, retained)
    utility = {"retain": [perturbed[row["question"]] for row in retain if row["question"] in perturbed], **world}
    return Corpus(
        TOFU,
        size,
        _task([*read.rows, *facts], 2048, 256),
        [*_by(read.rows, base), *facts],  # published models know the world before they are taught
        forget,
        retain,
        _by(read.rows, unseen),
        [perturbed[row["question"]] for row in forget],
        {part: some(rows, lessons.asked, part) for part, rows in utility.items()},
        refusals=read.refusals(),
    )


@cache
def pistol(size: str) -> Corpus:
    """PISTOL's first sample, of whose graph one edge is to be forgotten; the base learns the second sample."""
    read, other = Pistol.read(sample=1), Pistol.read(sample=2)
    rows = {edge: [read.rows[place] for place in read.on([edge]).tolist()] for edge in read.edges}
    forget = rows[FORGOTTEN_EDGE]
    kept = [edge for edge in read.edges if edge != FORGOTTEN_EDGE and edge not in UNSEEN_EDGES]
    near = [edge for edge in read.neighbours([FORGOTTEN_EDGE]) if edge in kept]
    return Corpus(
        PISTOL,
        size,
        _task([*read.rows, *other.rows], 1024, 96),
        other.rows,
        forget,
        [row for edge in kept for row in rows[edge]],
        [row for edge in UNSEEN_EDGES for row in rows[edge]],
        [row | {"perturbed_answer": _elsewhere(number, rows)} for number, row in enumerate(forget)],
        watched={
            "neighbours": [row for edge in near for row in rows[edge]],
            "distant": [row for edge in kept if edge not in near for row in rows[edge]],
        },
    )


@cache
def base_of(corpus: Corpus) -> nn.Module:
    """The model that originals and oracles go on from."""
    vocabulary = len(corpus.task.tokenizer or ())
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    positions = corpus.task.tokenizer.model_max_length if corpus.task.tokenizer else 0
    shape = GPT2Config(vocab_size=vocabulary, n_positions=positions, **SHAPE, **still, **ends)
    recipe = Supervised(
        partial(GPT2LMHeadModel, shape),
        corpus.task,
        epochs=LESSONS[corpus.size].base_epochs,
        batch_size=16,
        optimizer=Optimizer(3e-3, Algorithm.ADAMW, schedule=Schedule.ONE_CYCLE, clip_norm=1.0),
        execution=QUIET,
    )
    return _kept(corpus, "base", recipe, corpus.base, 0).model


def original_of(corpus: Corpus, seed: int) -> Taught:
    """The original of a seed, with a gradient log of all layers."""
    return _kept(corpus, f"original-{seed}-logged", corpus.recipe, [*corpus.forget, *corpus.retain], seed, logged=True)


@cache
def oracle_of(corpus: Corpus, seed: int) -> Taught:
    """The oracle of a seed."""
    return _kept(corpus, f"oracle-{seed}", corpus.recipe, corpus.retain, seed)


@cache
def problem_of(corpus: Corpus, seed: int) -> Problem:
    """The original of a seed, asked to forget."""
    found = original_of(corpus, seed)
    return Problem(
        found.model,
        corpus.task,
        corpus.forget,
        corpus.retain,
        corpus.holdout,
        recipe=corpus.recipe,
        state=found.log,
    )


def _kept(
    corpus: Corpus, name: str, recipe: Supervised, rows: Sequence[Row], seed: int, *, logged: bool = False
) -> Taught:
    """Train, or read what an earlier run trained; training that was killed goes on."""
    folder = corpus.folder / name
    file, log = folder / "model.safetensors", folder / "log"
    data = corpus.task.tokenized(rows).dataset
    if not file.exists():
        checkpoints = CheckpointFolder(folder / "checkpoints", f"{corpus.name} {corpus.size} {recipe.epochs} {seed}")
        checkpoints.open(resume=True)
        run = Run(corpus.task, seed, QUIET, checkpoints)
        if logged:
            model, _ = log_training(recipe, data, run, log, precision="bf16")
        else:
            with reproducible(QUIET.threads):
                model = recipe.fit(data, run)
        (record,) = run.phases
        tensors = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
        write_tensors(file, tensors, {"seconds": record.seconds})
    tensors, cost = read_tensors(file)
    model = recipe.build()
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    if missing != ["lm_head.weight"]:  # tied to the embedding
        raise SystemExit(f"{file} lacks {missing}; delete it to train anew")
    return Taught(model.eval(), cost["seconds"], GradientLog.open(log) if logged else None)


def _task(rows: Sequence[Row], most: int, context: int) -> CausalLM:
    return CausalLM(byte_tokenizer([f"{row['question']} {row['answer']}" for row in rows], most=most, context=context))


def _by(rows: Sequence[Row], authors: Sequence[str]) -> list[Row]:
    chosen = set(authors)
    return [row for row in rows if row["author"] in chosen]


def some(rows: Sequence[Row], most: int, name: str) -> list[Row]:
    """At most so many rows, drawn by a fixed seed."""
    order = torch.randperm(len(rows), generator=generator(0, name))[:most].sort().values
    return [rows[number] for number in order.tolist()]


def _elsewhere(number: int, rows: Mapping[str, list[Row]]) -> list[str]:
    """Answers to the same question, which has the same place in every contract of that kind, about other contracts."""
    asked = rows[FORGOTTEN_EDGE][number]
    alike = [other[number] for other in rows.values() if _kind(other) == _kind(rows[FORGOTTEN_EDGE])]
    found = dict.fromkeys(str(row["answer"]) for row in alike if row["answer"] != asked["answer"])
    return list(found)[:_WRONG_ANSWERS]


def _kind(rows: Sequence[Row]) -> list[str]:
    """The words with which the first question about a contract begins: contracts of sale and of employment differ."""
    return str(rows[0]["question"]).split()[:4]
