"""Tiny language models and made-up facts, for the tests of text."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import tiny
from expunge.problem import Problem, split
from expunge.tasks import CausalLM
from expunge.training import Algorithm, Optimizer, Supervised

NAMES = ("ann", "bob", "cid", "dee", "eva", "fay", "gus", "hal", "ida", "jon", "kim", "lea")
TOWNS = ("rome", "oslo", "bern", "kiev", "lima")
JOBS = ("cook", "smith", "nurse", "pilot")
WORDS = ("[PAD]", "[EOS]", "[UNK]", "Question", ":", "Answer", "where", "does", "live", "what", "is", "the", "job",
         "of", "in", "a", "?", ".", "not", "known", *NAMES, *TOWNS, *JOBS)  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", model_max_length=32
    )


def facts() -> list[dict[str, str]]:
    """Two questions about each person, with answers of different lengths."""
    found: list[dict[str, str]] = []
    for number, name in enumerate(NAMES):
        town, job = TOWNS[number % len(TOWNS)], JOBS[(number * 3 + 1) % len(JOBS)]
        found.append({"person": name, "question": f"where does {name} live ?", "answer": f"{name} live in {town} ."})
        found.append({"person": name, "question": f"what is the job of {name} ?", "answer": f"{name} is a {job} ."})
    return found


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    """An untrained GPT-2 of some 20,000 parameters, without dropout."""
    shape: dict[str, Any] = {"vocab_size": len(WORDS), "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    still: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**{**shape, **still, **ends, **changes}))


TASK = CausalLM(tokenizer())


def recipe(epochs: float = 15) -> Supervised:
    """How the tests train such a model."""
    return Supervised(
        gpt2, TASK, epochs=epochs, batch_size=8, optimizer=Optimizer(5e-3, Algorithm.ADAMW), execution=tiny.QUIET
    )


def problem(model: nn.Module | None = None, people: tuple[str, ...] = ("ann", "bob", "cid"), **given: Any) -> Problem:
    """Forget some people."""
    parts = split(facts(), column_is=("person", people))
    torch.manual_seed(0)
    return Problem(gpt2() if model is None else model, TASK, parts.forget, parts.retain, **given)
