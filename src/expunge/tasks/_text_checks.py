"""What a language model cannot be given, told before it is."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from expunge.errors import ContextError, EmptyAnswerError, TokenizerError
from expunge.tasks._text import Tokens


def require_usable(rows: Sequence[Tokens], most: int | None) -> None:
    """Refuse examples of more than `most` tokens, and those that have nothing to measure.

    Raises:
        ContextError: Examples are too long, and how many.
        EmptyAnswerError: Examples have nothing to measure, and how many.
    """
    longer = [len(row.input_ids) for row in rows if most is not None and len(row.input_ids) > most]
    if longer:
        raise ContextError(
            f"{len(longer)} of {len(rows)} examples have more than {most} tokens (the longest {max(longer)}); "
            "shorten them, raise `context` if the model can read more, or leave them out with "
            "`task.tokenized(dataset, too_long='drop')`, in a job with `too_long: drop` under `task`"
        )
    empty = sum(row.measured == 0 for row in rows)
    if empty:
        raise EmptyAnswerError(
            f"{empty} of {len(rows)} examples have an empty answer, or one token alone that nothing predicts; "
            "drop them, or mend their answers and labels"
        )


def require_fits(model: nn.Module, batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse a batch that the model cannot read.

    Raises:
        ContextError: It is longer than the model can read.
        TokenizerError: Tokenizer and model do not belong together, or tokens lie outside the vocabulary.
    """
    config = getattr(model, "config", None)
    length = batch["input_ids"].shape[1]
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        longer = int((batch["attention_mask"].sum(1) > most).sum())
        raise ContextError(
            f"{longer} of {len(batch['input_ids'])} examples in a batch have more tokens than the {most} that the "
            f"model can read (the longest {length}); set `context={most}` and leave them out with "
            "`task.tokenized(dataset, too_long='drop')`, or shorten them"
        )
    rows = cast(Any, model).get_input_embeddings().weight.shape[0]
    if tokenizer is not None:
        known = len(tokenizer)
        if not _has_room(known, rows):
            raise TokenizerError(
                f"the tokenizer has {known} tokens and the model {rows}: they do not belong together; load both "
                "from the same place, or resize the model's embeddings"
            )
        _require_same_ends(config, tokenizer, rows)
    elif int(batch["input_ids"].max()) >= rows:
        raise TokenizerError(
            f"a token is {int(batch['input_ids'].max())}, outside the model's vocabulary of {rows}; tokenise with "
            "the model's own tokenizer"
        )


def _has_room(known: int, rows: int) -> bool:
    """Whether so many rows are what `known` tokens get: as many, or more as they are padded or kept in reserve."""
    padded = any(rows % multiple == 0 and rows - known < multiple for multiple in (8, 64, 128))
    return known <= rows and (padded or rows - known <= known // _RESERVE)


def _require_same_ends(config: object, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuse a tokenizer whose tokens for beginning, end and padding are others than those of the model."""
    if not isinstance(config, PreTrainedConfig):
        return
    usual = _defaults(type(config))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        said, own = getattr(config, name, None), cast("int | None", getattr(tokenizer, name))
        ids = [each for each in (said if isinstance(said, list) else [said]) if isinstance(each, int)]
        # what its class brings along says nothing of a model with a vocabulary of its own, and may even lie outside it
        inherited = said == usual.get(name) and rows != usual.get("vocab_size")
        if own is None or inherited or not any(0 <= each < rows for each in ids) or own in ids:
            continue
        # padding by a token that is there for something else is a choice, and padded places count for nothing
        if name == "pad_token_id" and own in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
            continue
        raise TokenizerError(
            f"{name} is {own} to the tokenizer and {said} to the model: they do not belong together; load both from "
            "the same place, or give the model's config the tokenizer's where they are meant to differ"
        )


@cache
def _defaults(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    return kind().to_dict()


# Published checkpoints have up to 2.4 % more rows than tokens (DeepSeek-LLM 7B: 102,400 for 100,015).
_RESERVE = 8


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether a model can be asked for the logits of the last positions alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
