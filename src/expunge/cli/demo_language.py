"""The demonstration of text: a small GPT-2 learns made-up lives, and is asked to forget one person."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.audit.evidence import EVIDENCE_FILE
from expunge.audit.references import Oracles
from expunge.audit.text_written import write
from expunge.cli.biographies import FACTS_EACH, biographies, sentences
from expunge.cli.demo import one_thread
from expunge.cli.demo_folder import clear_demonstration
from expunge.cli.job import JOB_FILE, Job
from expunge.cli.problems import prepare
from expunge.cli.runs import CHECKPOINTS, Outcome, run_job
from expunge.cli.summary import outcome_json
from expunge.corpora import Row, word_tokenizer
from expunge.pretrained import PRETRAINED_FOLDER, write_pretrained
from expunge.report import REPORT_FILE
from expunge.states import STATE_FILE, log_training
from expunge.tasks import CausalLM
from expunge.training import Algorithm, Execution, Optimizer, Run, Schedule, Supervised, reproducible
from expunge.unlearning import KEY_FILE, RECORD_FILE, Unlearned

FACTS_FILE = "language.json"
ORIGINAL, LOG = "original", "log"

_MODULE = "expunge.cli.demo_language"
_TRAINED_PEOPLE, _UNSEEN_PEOPLE = 40, 12
_FORGOTTEN = 1  # of whom retrained models know as much by others as of most people whom no model has met
_CONTEXT = 32
_SHAPE = {"n_embd": 64, "n_layer": 2, "n_head": 4}
_EPOCHS, _BATCH, _RATE = 25, 16, 3e-3
_LONGEST_ANSWER = 16
_METHOD: dict[str, Any] = {"name": "gradient-reversal"}
_LAYERS = ("all",)
_FOLDERS = (ORIGINAL, LOG, PRETRAINED_FOLDER, CHECKPOINTS)
_FILES = (FACTS_FILE, JOB_FILE, RECORD_FILE, KEY_FILE, STATE_FILE, EVIDENCE_FILE, REPORT_FILE)


@dataclass(frozen=True)
class Answer:
    """A question about the person who is forgotten, and what is said to it."""

    question: str
    true: str
    original: str
    unlearned: str
    oracle: str


@dataclass(frozen=True)
class Story:
    """The whole demonstration.

    Attributes:
        person: Who was forgotten.
        answers: What the models say about that person.
        outcome: Of the run and its audit.
        training_seconds: Of the original, with its log.
        log_bytes: Size of the log.
    """

    person: str
    answers: Sequence[Answer]
    outcome: Outcome
    training_seconds: float
    log_bytes: int


def run_language(folder: Path, *, oracles: int, seed: int, say: Callable[[str], None]) -> Story:
    """Train with a log, forget a person, audit, and ask before and after; the folder then works as any run's.

    Raises:
        OutputError: The folder cannot be written, or holds something other than an earlier demonstration.
    """
    _clear(folder)
    with one_thread():
        return _demonstrate(folder, oracles, seed, say)


def training_data() -> list[Row]:
    """What the model is trained on."""
    return biographies(_TRAINED_PEOPLE)


def holdout_data() -> list[Row]:
    """The same about people whom no model has met."""
    return biographies(_TRAINED_PEOPLE + _UNSEEN_PEOPLE)[FACTS_EACH * _TRAINED_PEOPLE :]


def untrained(vocabulary: int) -> nn.Module:
    """A GPT-2 of some 100,000 parameters, without dropout."""
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    settings: dict[str, Any] = {"vocab_size": vocabulary, "n_positions": _CONTEXT, **_SHAPE, **still, **ends}
    configuration = GPT2Config(**settings)
    return GPT2LMHeadModel(configuration)


def story_json(story: Story) -> dict[str, Any]:
    """The story for programs."""
    return {
        "demonstration": "language",
        "person": story.person,
        "answers": [vars(answer) for answer in story.answers],
        "training_seconds": story.training_seconds,
        "log_bytes": story.log_bytes,
        **outcome_json(story.outcome),
    }


def _demonstrate(folder: Path, oracles: int, seed: int, say: Callable[[str], None]) -> Story:
    people, rows = training_data(), holdout_data()
    say(
        f"Training a small GPT-2 on {len(people)} questions about {_TRAINED_PEOPLE} people who do not exist, with a "
        f"gradient log; {len(rows)} more, about {_UNSEEN_PEOPLE} others, are held out"
    )
    started = time.monotonic()
    task = _train(folder, people, seed)
    seconds, size = time.monotonic() - started, _bytes(folder / LOG)
    person = str(people[_FORGOTTEN * FACTS_EACH]["person"])
    say(f"Now the model is to forget {person}")
    job = _job(folder, person, oracles, seed)
    outcome = run_job(job, folder, resume=False, say=say)
    answers = _answers(job, folder, task, oracles, seed)
    return Story(person, answers, outcome, seconds, size)


def _train(folder: Path, people: list[Row], seed: int) -> CausalLM:
    """The original and its log, into the folder."""
    task = CausalLM(word_tokenizer(sentences(), context=_CONTEXT))
    vocabulary = len(task.tokenizer or ())
    optimizer = Optimizer(_RATE, Algorithm.ADAMW, schedule=Schedule.ONE_CYCLE)
    recipe = Supervised(partial(untrained, vocabulary), task, _EPOCHS, _BATCH, optimizer)
    model, _ = log_training(
        recipe, people, Run(task, seed, Execution()), folder / LOG, layers=_LAYERS, precision="bf16"
    )
    write_pretrained(cast(GPT2LMHeadModel, model), task.tokenizer, folder, ORIGINAL)
    return task


def _answers(job: Job, folder: Path, task: CausalLM, oracles: int, seed: int) -> list[Answer]:
    """What the original, the unlearned model and the first oracle of the audit, which the cache has, say."""
    prepared = prepare(job)
    problem = prepared.problem
    oracle = Oracles.train(problem, oracles, seed, progress=False).models[0]
    unlearned = Unlearned.load(folder, problem).model
    run = Run(task, seed, Execution(progress=False))
    forget = problem.forget or ()
    with reproducible():
        said = [
            write(run, model, forget, longest=_LONGEST_ANSWER).written for model in (problem.model, unlearned, oracle)
        ]
    return [
        Answer(row["question"], row["answer"], *(text.strip() for text in texts))
        for row, *texts in zip((forget[place] for place in range(len(forget))), *said, strict=True)
    ]


def _job(folder: Path, person: str, oracles: int, seed: int) -> Job:
    content = {
        "model": {"hf": ORIGINAL},
        "data": {
            "train": {"python": f"{_MODULE}:training_data"},
            "holdout": {"python": f"{_MODULE}:holdout_data"},
        },
        "task": {"kind": "causal-lm"},
        "forget": {"column": "person", "values": [person]},
        "method": _METHOD,
        "state": LOG,
        "recipe": {"epochs": _EPOCHS, "batch_size": _BATCH, "learning_rate": _RATE, "algorithm": "adamw"},
        "audit": {"oracles": oracles},
        "seed": seed,
        "output": ".",
    }
    return Job.model_validate(content).model_copy(update={"base": folder.absolute()})


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _clear(folder: Path) -> None:
    clear_demonstration(folder, FACTS_FILE, _FILES, _FOLDERS)
