"""From examples of text to tokens, some of which are prompt and carry no loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from expunge.data import Example, FieldKey
from expunge.errors import DataError, EmptyAnswerError, TokenizerError

IGNORED = -100
"""Label of a token that carries no loss, as Hugging Face models take it."""

NUMBER = "_expunge_number"
"""Field of an example whose batch is to say which example it is; users have fields called `number`."""

_ANSWER = "{answer}"
_UNBOUNDED = 10**9  # transformers gives a tokenizer that knows no limit one of 1e30


@dataclass(frozen=True)
class Tokens:
    """One example."""

    input_ids: Tensor  # (length,) int64
    labels: Tensor  # (length,) int64, IGNORED where the token carries no loss

    @property
    def measured(self) -> int:
        """Tokens whose probability is measured: those with a label, without the first, which nothing predicts."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True)
class Tokenized:
    """A dataset whose every example is tokens and fits.

    Attributes:
        dataset: Mappings of `input_ids` and `labels`, besides the group where there is one.
        kept: (examples,) int64 positions of these examples in the dataset that was given.
        dropped: How many were too long.
    """

    dataset: list[dict[str, Any]]
    kept: Tensor
    dropped: int


def tokens_of(example: Example, tokenizer: PreTrainedTokenizerBase | None, template: str) -> Tokens:
    """Tokens and labels of an example in any of the forms that `CausalLM` takes.

    Raises:
        DataError: The form is none of them, a field is no text, or fields disagree in length.
        EmptyAnswerError: A text or an answer is null.
        TokenizerError: It is text and there is no tokenizer.
    """
    if isinstance(example, Mapping):
        fields = cast("Mapping[str, Any]", example)
        if "input_ids" in fields:
            return _already(fields)
        if "text" in fields:
            return _plain(_text(fields, "text"), tokenizer)
        if "question" in fields and "answer" in fields:
            return _answered(_text(fields, "question"), _text(fields, "answer"), tokenizer, template)
        known = ", ".join(sorted(map(str, fields)))
        raise DataError(
            f"an example has the fields {known}; a language model needs `input_ids`, or `text`, or `question` and "
            "`answer`: rename the fields"
        )
    if isinstance(example, str):
        return _plain(example, tokenizer)
    if isinstance(example, Tensor):
        return _already({"input_ids": example})
    if isinstance(example, tuple | list):
        parts = list(cast("Sequence[Any]", example))
        if parts and all(isinstance(part, int) for part in parts):
            return _already({"input_ids": parts})
        if len(parts) == 2 and all(isinstance(part, str) for part in parts):
            return _answered(parts[0], parts[1], tokenizer, template)
        if len(parts) in (1, 2) and not any(isinstance(part, str) for part in parts):
            return _already(dict(zip(("input_ids", "labels"), parts, strict=False)))
    raise DataError(
        f"an example is a {type(example).__name__}; a language model needs text, (question, answer), "
        "(input_ids, labels), or a mapping with such fields"
    )


def answer_of(example: Example) -> tuple[str, str] | None:
    """Question and answer of an example as text, or None where it has none.

    Raises:
        DataError: One of them is no text.
        EmptyAnswerError: The answer is null.
    """
    if isinstance(example, Mapping):
        fields = cast("Mapping[str, Any]", example)
        return (_text(fields, "question"), _text(fields, "answer")) if {"question", "answer"} <= set(fields) else None
    if isinstance(example, tuple | list):
        parts = list(cast("Sequence[Any]", example))
        if len(parts) == 2 and all(isinstance(part, str) for part in parts):
            return parts[0], parts[1]
    return None


def group_of(example: Example, field: FieldKey) -> str:
    """What a field of an example says as the name of its group.

    Raises:
        DataError: It has no such field.
    """
    try:
        value = example[field]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"an example has no field {field!r}, which is to name its group") from error
    return str(value.item() if isinstance(value, Tensor) else value)


def prompt_of(question: str, template: str) -> tuple[str, str, str]:
    """What the template puts before an answer, the white space that belongs to the answer, and what stands after it.

    Vocabularies of subwords have tokens that begin with a space, so the space before the answer is the answer's.
    """
    before, _, after = template.partition(_ANSWER)
    prompt = before.replace("{question}", question)
    stripped = prompt.rstrip(" ")
    return stripped, prompt[len(stripped) :], after


def answer_tokens(answer: str, tokenizer: PreTrainedTokenizerBase | None, template: str) -> Tensor:
    """Tokens of an answer as they follow a prompt, with the token that ends it: (tokens,), none for an empty answer."""
    known, (_, space, after) = require_tokenizer(tokenizer), prompt_of("", template)
    wanted = ids_of(known, space + answer + after) if answer.strip() else []
    if wanted and known.eos_token_id is not None:
        wanted.append(int(cast(int, known.eos_token_id)))
    return torch.tensor(wanted, dtype=torch.long)


def opening(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokens of a prompt, begun as the tokenizer begins a text and not ended."""
    found = ids_of(tokenizer, prompt, special=True)
    return found[:-1] if found and found[-1] == tokenizer.eos_token_id else found


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Tokens of a text, however long it is."""
    found: Any = tokenizer(text, add_special_tokens=special, verbose=False)
    return list(found["input_ids"])


def context_of(tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """Most tokens that a tokenizer says its model can read, or None where it does not say."""
    most = _UNBOUNDED if tokenizer is None else int(tokenizer.model_max_length)
    return most if most < _UNBOUNDED else None


def require_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer; raise a TokenizerError where there is none."""
    if tokenizer is None:
        raise TokenizerError("the examples are text: give the task a tokenizer, as in `CausalLM(tokenizer)`")
    return tokenizer


def padded(rows: Sequence[Tokens], pad: int) -> dict[str, Tensor]:
    """Rows of equal length: `input_ids`, `attention_mask` and `labels`, each (batch, length), padded on the right."""
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[number, :length], labels[number, :length], mask[number, :length] = row.input_ids, row.labels, 1
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A field that must be text; a null would otherwise be learned as the word None."""
    value = fields[name]
    if value is None and name != "question":
        raise EmptyAnswerError(f"the `{name}` of an example is null; drop such examples, or mend them")
    if not isinstance(value, str):
        raise DataError(f"the `{name}` of an example is a {type(value).__name__}, not text; give it as a string")
    return value


def _already(fields: Mapping[str, Any]) -> Tokens:
    input_ids = _whole_numbers(fields["input_ids"], "input_ids")
    labels = input_ids.clone() if fields.get("labels") is None else _whole_numbers(fields["labels"], "labels")
    if len(labels) != len(input_ids):
        raise DataError(f"an example has {len(input_ids)} input_ids and {len(labels)} labels; give one label a token")
    if fields.get("attention_mask") is not None:
        kept = _whole_numbers(fields["attention_mask"], "attention_mask").bool()
        if len(kept) != len(input_ids):
            raise DataError(f"an example has {len(input_ids)} input_ids and an attention_mask of {len(kept)}")
        input_ids, labels = input_ids[kept], labels[kept]
    if fields.get("prompt_length") is not None:  # after the mask: padding on the left is no part of the prompt
        labels[: _length_of_prompt(fields["prompt_length"])] = IGNORED
    return Tokens(input_ids, labels)


def _length_of_prompt(value: Any) -> int:
    try:
        length = index(value)
    except TypeError as error:
        raise DataError(
            f"prompt_length of an example is a {type(value).__name__}; give the number of its first tokens that carry "
            "no loss"
        ) from error
    if length < 0:
        raise DataError(f"prompt_length of an example is {length}; it is a number of tokens, 0 or more")
    return length


def _whole_numbers(values: Any, name: str) -> Tensor:
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} of an example are no whole numbers; tokenise the text first") from error
    if found.ndim != 1 or found.is_floating_point() or found.is_complex():
        raise DataError(f"{name} of an example must be a row of whole numbers, not {found.dtype} {tuple(found.shape)}")
    return found.long().clone()


def _plain(text: str, tokenizer: PreTrainedTokenizerBase | None) -> Tokens:
    input_ids = torch.tensor(ids_of(require_tokenizer(tokenizer), text, special=True), dtype=torch.long)
    return Tokens(input_ids, input_ids.clone())


def _answered(question: str, answer: str, tokenizer: PreTrainedTokenizerBase | None, template: str) -> Tokens:
    """The prompt carries no loss; the answer does, and so does the token that ends it where there is one."""
    prompt = torch.tensor(opening(require_tokenizer(tokenizer), prompt_of(question, template)[0]), dtype=torch.long)
    wanted = answer_tokens(answer, tokenizer, template)
    return Tokens(torch.cat([prompt, wanted]), torch.cat([torch.full_like(prompt, IGNORED), wanted]))
