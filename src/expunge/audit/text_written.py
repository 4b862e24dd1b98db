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
from expunge.errors import ContextError, DataError, MissingNeedError, TokenizerError
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
    """Let a model answer, always with its first choice, until it ends, has written enough, or its context is full.

    Args:
        run: Whose task is a `CausalLM` with a tokeniser.
        model: A Hugging Face model.
        dataset: Examples with a prompt.
        longest: Most tokens to write; by default as many as the true answer has.
        batch_size: Prompts at a time.

    Raises:
        ContextError: The model cannot read an example to its end, or with `longest` a prompt and one token more.
        DataError: An example has no prompt.
        TokenizerError: The task has no tokeniser.
    """
    task = text_task(run)
    read = task.tokenizer
    if read is None:
        raise TokenizerError("written text is compared as text: give the task a tokenizer, as in `CausalLM(tokenizer)`")
    pairs = [_parted(row["input_ids"], row["labels"]) for row in task.tokenized(dataset).dataset]
    _require_fits(model, [len(prompt) + (1 if longest else len(answer)) for prompt, answer in pairs])
    written: list[str] = []
    for start in range(0, len(pairs), batch_size):
        some = pairs[start : start + batch_size]
        most = [longest or len(answer) for _, answer in some]
        for tokens in _continued(run, model, task, [prompt for prompt, _ in some], most):
            written.append(cast(str, read.decode(tokens, skip_special_tokens=True)))
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
    continuation for every token; a larger `stride` takes every so manieth place. The token that ends a text belongs to
    neither continuation, so that a text known by heart has 1. NaN where an example has fewer labelled tokens than
    `words` without it; where all of its tokens are labelled, the first is given and does not count.

    Args:
        run: Whose task is a `CausalLM`.
        model: A Hugging Face model.
        dataset: Examples; a prompt is always given, and places are those of the labelled tokens.
        words: Tokens in a run.
        stride: From one place to the next.
        batch_size: Continuations at a time.

    Raises:
        ContextError: The model cannot read an example to its end.
    """
    task, found = text_task(run), list[float]()
    end = task.special_tokens[1]
    for row in task.tokenized(dataset).dataset:
        first = int((row["labels"] != -100).nonzero()[0])
        tokens: Tensor = row["input_ids"]
        _require_fits(model, [len(tokens)])
        cuts = list(range(max(first, 1), len(tokens) - words + 1, stride))
        true = [_before(tokens[cut:], end) for cut in cuts]
        places = [(tokens[:cut], rest) for cut, rest in zip(cuts, true, strict=True) if len(rest) >= words]
        shares: list[float] = []
        for start in range(0, len(places), batch_size):
            some = places[start : start + batch_size]
            own = _continued(run, model, task, [given for given, _ in some], [len(rest) for _, rest in some])
            for continued, (_, rest) in zip(own, some, strict=True):
                shares.append(overlap(continued.tolist(), rest.tolist(), words))
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


def _reads(model: nn.Module) -> int | None:
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def _require_fits(model: nn.Module, lengths: Sequence[int]) -> None:
    most = _reads(model)
    longer = [each for each in lengths if most is not None and each > most]
    if longer:
        raise ContextError(
            f"{len(longer)} of {len(lengths)} examples need more tokens than the {most} that the model can read (the "
            f"longest {max(longer)}); set `context={most}` and leave them out with "
            "`task.tokenized(dataset, too_long='drop')`, or shorten them"
        )


def _continued(
    run: Run, model: nn.Module, task: CausalLM, prompts: Sequence[Tensor], longest: Sequence[int]
) -> list[Tensor]:
    """First choices after each prompt: at most so many, and without the token that ends a text: (tokens,) on the CPU.

    The rows of a batch end in the same column, so the longest prompt bounds what all may write before the context is
    full. Rows that are to write more go on without it from where they came to.
    """
    end, most = task.special_tokens[1], _reads(model)
    widths = [len(prompt) for prompt in prompts]
    limits = [own if most is None else min(own, most - width) for own, width in zip(longest, widths, strict=True)]
    written = [torch.empty(0, dtype=torch.long) for _ in prompts]
    while going := [number for number, own in enumerate(written) if _goes_on(own, limits[number], end)]:
        rows = [torch.cat([prompts[number], written[number]]) for number in going]
        wanted = max(limits[number] - len(written[number]) for number in going)
        room = wanted if most is None else min(wanted, most - max(len(row) for row in rows))
        for number, found in zip(going, _generated(run, model, task, rows, room), strict=True):
            written[number] = torch.cat([written[number], found])
    return [_before(own[:limit], end) for own, limit in zip(written, limits, strict=True)]


def _goes_on(written: Tensor, limit: int, end: int | None) -> bool:
    return len(written) < limit and len(_before(written, end)) == len(written)


def _generated(run: Run, model: nn.Module, task: CausalLM, rows: Sequence[Tensor], longest: int) -> Tensor:
    """First choices after each row, the end and padding included: (rows, tokens)."""
    pad, end = task.special_tokens
    width = max(len(row) for row in rows)
    tokens, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):  # on the left, so that all go on from the last column
        tokens[number, width - len(row) :], mask[number, width - len(row) :] = row, 1
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
    return found[:, width:].cpu()


def _before(tokens: Tensor, end: int | None) -> Tensor:
    places = (tokens == end).nonzero() if end is not None else torch.empty(0)
    return tokens[: int(places[0])] if len(places) else tokens
