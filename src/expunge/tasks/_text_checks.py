"""What a language model cannot be given, told before it is."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

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
        if known > rows or rows > known + max(1024, known // 4):
            raise TokenizerError(
                f"the tokenizer has {known} tokens and the model {rows}: they do not belong together; load both "
                "from the same place, or resize the model's embeddings"
            )
    elif int(batch["input_ids"].max()) >= rows:
        raise TokenizerError(
            f"a token is {int(batch['input_ids'].max())}, outside the model's vocabulary of {rows}; tokenise with "
            "the model's own tokenizer"
        )


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether a model can be asked for the logits of the last positions alone."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
