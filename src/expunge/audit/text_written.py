"""Measures of what a language model writes by itself, greedily, after a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from expunge.audit.text import Floats, equally_many, text_task
from expunge.data import MapDataset
from expunge.errors import DataError, MissingNeedError, TokenizerError
from expunge.tasks import CausalLM
from expunge.training import Run


@dataclass(frozen=True)
class Written:
    """What a model wrote after each prompt, and what it should have: text without special tokens."""

    written: list[str]
    wanted: list[str]


def write(
    run: Run, model: nn.Module, dataset: MapDataset, *, longest: int | None = None, batch_size: int = 32
) -> Written:
    """Let a model answer, always with its first choice, until it ends or has written enough.

    Args:
        run: Whose task is a `CausalLM` with a tokeniser.
        model: A Hugging Face model.
        dataset: Examples with a prompt.
        longest: Most tokens to write; by default as many as the true answer has.
        batch_size: Prompts at a time.

    Raises:
        DataError: An example has no prompt.
        TokenizerError: The task has no tokeniser.
    """
    task = text_task(run)
    read = task.tokenizer
    if read is None:
        raise TokenizerError("written text is compared as text: give the task a tokenizer, as in `CausalLM(tokenizer)`")
    pairs = [_parted(row["input_ids"], row["labels"]) for row in task.tokenized(dataset).dataset]
    written: list[str] = []
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        found = _continued(run, model, task, [pair[0] for pair in some], longest or max(len(pair[1]) for pair in some))
        for tokens, (_, answer) in zip(found, some, strict=True):
            written.append(cast(str, read.decode(tokens[: longest or len(answer)], skip_special_tokens=True)))
    return Written(written, [cast(str, read.decode(answer, skip_special_tokens=True)) for _, answer in pairs])


def rouge_l(written: Sequence[str], wanted: Sequence[str]) -> dict[str, Floats]:
    """`recall` and `F1` of ROUGE-L, the longest common subsequence of words: (examples,) each.

    TOFU reports recall, MUSE F1. Words are stemmed, as both do. Source: Lin 2004, by the package rouge-score.

    Raises:
        MissingNeedError: rouge-score is not installed.
        ShapeError: The texts are not equally many.
    """
    equally_many(written, wanted, "texts")
    if find_spec("rouge_score") is None:
        raise MissingNeedError("ROUGE-L needs rouge-score: install it with `pip install 'expunge[language]'`")
    from rouge_score.rouge_scorer import RougeScorer

    scorer: Any = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [scorer.score(true, own)["rougeL"] for own, true in zip(written, wanted, strict=True)]
    return {
        "recall": np.array([score.recall for score in scores], dtype=np.float64),
        "F1": np.array([score.fmeasure for score in scores], dtype=np.float64),
    }


def extraction_likelihood(
    run: Run, model: nn.Module, dataset: MapDataset, *, words: int = 10, stride: int = 1, batch_size: int = 32
) -> Floats:
    """EL: how many of the runs of `words` tokens that the model writes stand in the rest of the true text: (examples,).

    The mean over places t of the share of such runs in the model's own continuation of the first t tokens that occur
    in the true continuation. With 10 it is EL10 of Jang et al. 2023 (arXiv 2210.01504). It takes a
    continuation for every token; a larger `stride` takes every so manieth place. NaN where an example has
    fewer labelled tokens than `words`; where all of its tokens are labelled, the first is given and does not count.

    Args:
        run: Whose task is a `CausalLM`.
        model: A Hugging Face model.
        dataset: Examples; a prompt is always given, and places are those of the labelled tokens.
        words: Tokens in a run.
        stride: From one place to the next.
        batch_size: Continuations at a time.
    """
    task, found = text_task(run), list[float]()
    for row in task.tokenized(dataset).dataset:
        first = int((row["labels"] != -100).nonzero()[0])
        tokens: Tensor = row["input_ids"]
        cuts = list(range(max(first, 1), len(tokens) - words + 1, stride))
        shares: list[float] = []
        for start in range(0, len(cuts), batch_size):
            some = cuts[start : start + batch_size]
            own = _continued(run, model, task, [tokens[:cut] for cut in some], len(tokens) - some[0])
            for cut, continued in zip(some, own, strict=True):
                shares.append(overlap(continued[: len(tokens) - cut].tolist(), tokens[cut:].tolist(), words))
        found.append(float(np.mean(shares)) if shares else float("nan"))
    return np.array(found)


def overlap(written: Sequence[int], true: Sequence[int], words: int) -> float:
    """Share of the runs of so many tokens in `written` that occur in `true`; 0 where there are none."""
    known = set(_runs(true, words))
    runs = list(_runs(written, words))
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def _runs(tokens: Sequence[int], words: int) -> Iterator[tuple[int, ...]]:
    return (tuple(tokens[start : start + words]) for start in range(len(tokens) - words + 1))


def _parted(input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    first = int((labels != -100).nonzero()[0])
    if first == 0:
        raise DataError(
            "an example has no prompt to answer: all of its tokens carry a loss; give questions with answers, or mark "
            "the prompt with `prompt_length`"
        )
    return input_ids[:first], input_ids[first:]


def _continued(run: Run, model: nn.Module, task: CausalLM, prompts: Sequence[Tensor], longest: int) -> list[Tensor]:
    """First choices after each prompt, up to and without the token that ends a text: (tokens,) each, on the CPU."""
    pad, end = task.special_tokens
    width = max(len(prompt) for prompt in prompts)
    tokens, mask = torch.full((len(prompts), width), pad), torch.zeros((len(prompts), width), dtype=torch.long)
    for number, prompt in enumerate(prompts):  # on the left, so that all go on from the last column
        tokens[number, width - len(prompt) :], mask[number, width - len(prompt) :] = prompt, 1
    training = model.training
    model.to(run.device).eval()
    try:
        with torch.inference_mode():
            found: Tensor = cast(Any, model).generate(
                input_ids=tokens.to(run.device),
                attention_mask=mask.to(run.device),
                max_new_tokens=longest,
                do_sample=False,
                num_beams=1,
                pad_token_id=pad,
                eos_token_id=end,
            )
    finally:
        model.train(training)
    return [_before(row, end) for row in found[:, width:].cpu()]


def _before(tokens: Tensor, end: int | None) -> Tensor:
    places = (tokens == end).nonzero() if end is not None else torch.empty(0)
    return tokens[: int(places[0])] if len(places) else tokens
