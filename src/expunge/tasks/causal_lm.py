"""Causal language models: text of which some is prompt and the rest is to be predicted, token by token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import PreTrainedTokenizerBase

from expunge.data import Example, FieldKey, MapDataset, View
from expunge.errors import ContextError, DataError, ModelError, SettingError, TokenizerError
from expunge.settings import require_positive, require_whole
from expunge.tasks._text import (
    IGNORED,
    NUMBER,
    Tokenized,
    Tokens,
    answer_of,
    answer_tokens,
    context_of,
    group_of,
    padded,
    tokens_of,
)
from expunge.tasks._text_checks import reads_of, require_fits, require_readable, require_usable, takes_logits_to_keep
from expunge.tasks._text_outputs import divergence_by_place, parted_log_probabilities
from expunge.tasks.base import Task
from expunge.tasks.predictions import Predictions, fitted_head

TextBatch = dict[str, Any]
"""`input_ids`, `attention_mask`, `labels`: (batch, length) int64; where examples have them `groups`, a name an example,
and `numbers`, (batch,) int64."""


@dataclass(frozen=True)
class CausalLM(Task):
    """A Hugging Face model that predicts the next token.

    An example is text, (question, answer), (input_ids, labels), or a mapping with `text`, or `question` and
    `answer`, or `input_ids` with `labels` or `prompt_length` where some tokens carry no loss. Tokens that an
    `attention_mask` leaves out are padding on either side and no part of the example; `prompt_length` is the number of
    first tokens without a loss among those that are attended. The loss of an example is the mean over its tokens that
    carry one. Of a question and its answer, the answer and the token that ends it do.
    Where mappings have a whole `_expunge_number`, their batch gives it back as `numbers`, so that what was computed of
    an example before can be found again.

    Outputs are made to be kept for a whole set, for which (examples, length, vocabulary) is too much: at `places` of an
    example's labelled tokens, evenly spread where there are more, the log-probability of the true token and of
    `buckets` fixed parts of the other vocabulary (token number modulo `buckets`). These are distributions over the same
    parts whatever the model, which the best k tokens would not be, and a divergence between them never exceeds that
    of the full distributions and grows towards it with the number of parts.

    Args:
        tokenizer: For examples that are text. Without one, examples are padded with token 0, which neither loss nor
            attention sees.
        context: Most tokens of an example. By default what the tokenizer says; what the model says always holds.
        template: How a question and an answer are put together.
        group: Field that names the group of an example, such as its author; without one there is one group.
        places: Most tokens of an example whose predictions are part of the outputs.
        buckets: Parts of the vocabulary besides the true token.
        least_likely: Share of an example's tokens, the least likely ones, whose mean log-odds are the membership
            signal; 1 is all of them. (Min-K%, Shi et al. 2024, arXiv 2310.16789, has .2.)

    Raises:
        TokenizerError: The tokenizer has no pad token.
        SettingError: A number is out of range, or the template lacks a place for question or answer.
    """

    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    context: int | None = None
    template: str = "Question: {question}\nAnswer: {answer}"
    group: FieldKey | None = None
    places: int = 64
    buckets: int = 31
    least_likely: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges, the template and the pad token."""
        require_whole(self, "context", least=2)
        require_whole(self, "places", "buckets")
        require_positive(self, "least_likely")
        if self.least_likely > 1:
            raise SettingError(f"least_likely must be at most 1, not {self.least_likely!r}")
        if self.template.count("{question}") != 1 or self.template.count("{answer}") != 1:
            raise SettingError(f"template must hold {{question}} and {{answer}} once each, not {self.template!r}")
        if self.template.index("{answer}") < self.template.index("{question}"):
            raise SettingError("template must put {question} before {answer}")
        if self.tokenizer is not None and self.tokenizer.pad_token_id is None:
            raise TokenizerError(
                "the tokenizer has no pad token; set one, as in `tokenizer.pad_token = tokenizer.eos_token`"
            )

    def collate(self, examples: Sequence[Example]) -> TextBatch:
        """Pad examples on the right; refuse those that are too long or have nothing to measure."""
        rows = [tokens_of(example, self.tokenizer, self.template) for example in examples]
        require_usable(rows, self._most)
        batch: TextBatch = dict(padded(rows, self._pad))
        if all(isinstance(example, Mapping) and NUMBER in example for example in examples):
            batch["numbers"] = torch.tensor([int(example[NUMBER]) for example in examples])
        return (
            batch if self.group is None else batch | {"groups": [group_of(example, self.group) for example in examples]}
        )

    def stack(self, columns: Example) -> TextBatch:
        """A batch of columns that are tensors already: (batch, length) `input_ids`, perhaps `labels` and so on."""
        return self.collate(self._parted(columns))

    def tokenized(self, dataset: MapDataset, *, too_long: Literal["refuse", "drop"] = "refuse") -> Tokenized:
        """Tokenise a dataset once, instead of in each epoch, and say what becomes of examples that are too long.

        Args:
            dataset: Examples in any of the forms.
            too_long: `refuse` them, or `drop` them and give their number.

        Raises:
            ContextError: Examples are too long, and how many.
            EmptyAnswerError: Examples have nothing to measure, and how many.
        """
        if too_long not in ("refuse", "drop"):
            raise SettingError(f"too_long must be 'refuse' or 'drop', not {too_long!r}")
        examples = View.of(dataset).examples(torch.arange(len(dataset)))
        rows = [tokens_of(example, self.tokenizer, self.template) for example in examples]
        most = self._most
        kept = [n for n, row in enumerate(rows) if too_long == "refuse" or most is None or len(row.input_ids) <= most]
        require_usable([rows[number] for number in kept], most)
        if not kept:
            raise ContextError(f"all {len(rows)} examples have more than {most} tokens; split them into shorter ones")
        found: list[dict[str, Any]] = []
        for number in kept:
            named = {} if self.group is None else {str(self.group): group_of(examples[number], self.group)}
            found.append({"input_ids": rows[number].input_ids, "labels": rows[number].labels, **named})
        return Tokenized(found, torch.tensor(kept), len(rows) - len(kept))

    def labels_of(self, dataset: MapDataset) -> None:
        """Text has no classes."""
        del dataset

    def require_readable(self, model: nn.Module, datasets: Mapping[str, MapDataset]) -> None:
        """Refuse sets with examples that are longer than the task allows or the model can read, or without an answer.

        Raises:
            ContextError: Examples are too long, and how many of each set.
            EmptyAnswerError: Examples have nothing to measure, and how many.
        """
        rows = {name: self._rows(dataset) for name, dataset in datasets.items()}
        require_readable(rows, self._most, reads_of(model))

    def longest_for(self, model: nn.Module) -> int | None:
        """Most tokens of an example that both task and model allow, or None where neither says."""
        return min((most for most in (self._most, reads_of(model)) if most is not None), default=None)

    def predictions(self, model: nn.Module, batch: TextBatch) -> Predictions:
        """What a model expects at each place, from one forward pass.

        Raises:
            ModelError: The model returns no logits.
            TokenizerError: Tokens lie outside the vocabulary of the model.
            ContextError: The batch is longer than the model can read.
        """
        labels = batch["labels"]
        inner = extract_model_from_parallel(model)
        require_fits(inner, batch, self.tokenizer)
        targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)
        options: dict[str, Any] = {}
        if takes_logits_to_keep(inner):
            first = int((targets != IGNORED).any(0).nonzero()[0])
            options["logits_to_keep"] = targets.shape[1] - first
            targets = targets[:, first:]
        said = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **options)
        logits = cast("Tensor | None", getattr(said, "logits", None))
        if logits is None:
            raise ModelError(f"{type(inner).__name__} returns no logits; a causal language model is needed")
        return Predictions(logits.float() if logits.dtype in {torch.float16, torch.bfloat16} else logits, targets)

    def seen(self, model: nn.Module, batch: TextBatch) -> tuple[Tensor, Predictions]:
        """What the head sees at each place, (batch, places, features), and what it makes of it."""
        seen: list[Tensor] = []

        def remember(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append(arguments[0])

        handle = self.head_of(model).register_forward_pre_hook(remember)
        try:
            said = self.predictions(model, batch)
        finally:
            handle.remove()
        return seen[-1], said

    def activations(self, model: nn.Module, batch: TextBatch, layer: int) -> Tensor:
        """What block `layer`, counted from 0, gives out: (batch, length, features).

        Hugging Face models count the final normalisation to the last block.
        """
        inner = extract_model_from_parallel(model)
        require_fits(inner, batch, self.tokenizer)
        options: dict[str, Any] = {"logits_to_keep": 1} if takes_logits_to_keep(inner) else {}
        said = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
            output_hidden_states=True,
            **options,
        )
        return cast(Tensor, said.hidden_states[layer + 1]).float()

    def answer_tokens(self, answer: str) -> Tensor:
        """Tokens of an answer as they follow a question: (tokens,) int64."""
        return answer_tokens(answer, self.tokenizer, self.template)

    def outputs(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """Log-probabilities of the true token and of parts of the other vocabulary: (batch, places, 1 + buckets).

        Places beyond an example's tokens hold -inf throughout.
        """
        return parted_log_probabilities(self.predictions(model, batch), self.places, self.buckets)

    def losses(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """Mean negative log-likelihood of each example's tokens in nats: (batch,)."""
        said = self.predictions(model, batch)
        return said.mean(said.losses)

    def divergence(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Jensen-Shannon divergence in nats, at most log 2, averaged over the places of each example: (batch,).

        It is a lower bound of the divergence over the whole vocabulary, of which the outputs keep parts.
        """
        return divergence_by_place(outputs, reference)

    def signal(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """Mean log-odds log(p / (1 - p)) of the tokens, or of the share of them that is least likely: (batch,)."""
        said = self.predictions(model, batch)
        odds = said.by_place(said.log_odds, torch.inf)
        taken = (said.counts * self.least_likely).ceil().long()
        chosen = torch.arange(odds.shape[1], device=odds.device) < taken[:, None]
        return odds.sort(1).values.where(chosen, 0.0).sum(1) / taken

    def quality(self, model: nn.Module, batch: TextBatch) -> dict[str, Tensor]:
        """Exact memorisation and probability, each (batch,) in [0, 1].

        Exact memorisation is the share of tokens that are the model's first choice given those before (Tirumala et
        al. 2022, arXiv 2205.10770); probability is the geometric mean of the tokens' (Maini et al. 2024, arXiv
        2401.06121).
        """
        said = self.predictions(model, batch)
        hits = (said.logits.argmax(2) == said.targets).double()
        return {"exact memorisation": said.mean(hits), "probability": (-said.mean(said.losses.double())).exp()}

    def groups(self, batch: TextBatch) -> list[str]:
        """What the field `group` says, or `all`."""
        return list(batch["groups"]) if self.group is not None else ["all"] * len(batch["input_ids"])

    def answers(self, outputs: Tensor) -> dict[str, Tensor]:
        """Text has no kinds of answer."""
        del outputs
        return {}

    def features(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """What the head sees, averaged over the places that carry a loss: (batch, features)."""
        seen, said = self.seen(model, batch)
        return (seen * said.mask[..., None]).sum(1) / said.counts[:, None]

    def refit_head(self, model: nn.Module, batches: Iterable[TextBatch]) -> None:
        """Fit the output matrix alone to the tokens of these batches, holding what it sees fixed.

        A head that shares its weights with the input embedding is parted from it first. The objective is the mean
        negative log-likelihood of the tokens plus 5e-4 times the squared distance from the head as it was: strictly
        convex, so that what is found depends on the features alone. It is minimised by up to 100 iterations of L-BFGS;
        least squares, as for regression, would need a target for each of the vocabulary's logits.
        """
        model.eval()
        with torch.no_grad():
            pairs = [self._tokens_seen(model, batch) for batch in batches]
        features, targets = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        head = self.head_of(model)
        if head.weight is cast(Any, model).get_input_embeddings().weight:
            head.weight = nn.Parameter(head.weight.detach().clone())
            cast(Any, model).config.tie_word_embeddings = False
        head.weight.data.copy_(fitted_head(head.weight.detach().float(), head.bias, features.float(), targets))

    def head_of(self, model: nn.Module) -> nn.Linear:
        """The layer that gives the logits.

        Raises:
            ModelError: The model has none that is a Linear.
        """
        head = cast(Any, extract_model_from_parallel(model)).get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ModelError(f"{type(model).__name__} has no Linear as its output layer (get_output_embeddings)")
        return head

    @property
    def special_tokens(self) -> tuple[int, int | None]:
        """The token that pads, and the one that ends a text if there is one."""
        end = None if self.tokenizer is None else cast("int | None", self.tokenizer.eos_token_id)
        return self._pad, end

    @property
    def longest(self) -> int | None:
        """Most tokens of an example, as settings and tokenizer say, or None where neither does."""
        return self._most

    def question_and_answer(self, example: Example) -> tuple[str, str] | None:
        """Question and answer of an example as text, or None where it has none."""
        return answer_of(example)

    def length_of(self, example: Example) -> int:
        """Tokens of an example in any of the forms, prompt and all."""
        return len(tokens_of(example, self.tokenizer, self.template).input_ids)

    def _rows(self, dataset: MapDataset) -> list[Tokens]:
        """Tokens of every example."""
        view, every = View.of(dataset), torch.arange(len(dataset))
        tensors = isinstance(view.base, TensorDataset) and len(dataset)
        examples = self._parted(cast(Example, view.columns(every))) if tensors else view.examples(every)
        return [tokens_of(example, self.tokenizer, self.template) for example in examples]

    def _parted(self, columns: Example) -> list[dict[Any, Tensor]]:
        """Examples of columns that are tensors."""
        given = columns if isinstance(columns, Mapping) else dict(zip(("input_ids", "labels"), columns, strict=False))
        fields = cast("Mapping[Any, Any]", given)
        known: list[FieldKey | None] = ["input_ids", "labels", "attention_mask", "prompt_length", NUMBER, self.group]
        names = [name for name in known if name in fields]
        if "input_ids" not in names:
            raise DataError(f"the columns {', '.join(map(str, fields))} hold no `input_ids`; rename the field")
        rows = zip(*(torch.as_tensor(fields[name]) for name in names), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    @property
    def _pad(self) -> int:
        return 0 if self.tokenizer is None else int(cast(int, self.tokenizer.pad_token_id))

    @property
    def _most(self) -> int | None:
        return self.context if self.context is not None else context_of(self.tokenizer)

    def _tokens_seen(self, model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
        seen, said = self.seen(model, batch)
        return seen[said.mask], said.targets[said.mask]
