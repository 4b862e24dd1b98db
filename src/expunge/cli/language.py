"""Language models of a job: task and tokenizer, trained models, untrained ones."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from expunge.cli.job import Job
from expunge.cli.models import load_model, untrained
from expunge.cli.settings import checked_call
from expunge.cli.sources import Source
from expunge.cli.task_sections import CausalLMSection
from expunge.data import subset
from expunge.errors import ContextError, DataError, JobError, SourceError, TokenizerError
from expunge.pretrained import without_bars
from expunge.tasks import CausalLM, Tokenized


def language_task(job: Job) -> CausalLM:
    """The task of a job on text; no example is longer than the model's configuration says it can read.

    Raises:
        JobError: A setting is wrong.
        SourceError: The tokenizer cannot be loaded.
        TokenizerError: It has no token for padding, and none was named.
    """
    section = cast(CausalLMSection, job.task)
    settings = section.model_dump(exclude_none=True, exclude={"kind", "tokenizer", "pad_token", "too_long"})
    tokenizer = _tokenizer(job, section)
    if job.model.hf is not None:
        reads = getattr(_config(_configuration(job, job.model.hf, "model.hf")), "max_position_embeddings", None)
        if isinstance(reads, int) and reads < settings.get("context", tokenizer.model_max_length):
            settings["context"] = reads
    try:
        return checked_call(partial(CausalLM, tokenizer), settings, "task")
    except TokenizerError as error:
        names = [str(token) for token in tokenizer.all_special_tokens]
        advice = f", such as {names[0]!r}" if names else ""
        raise TokenizerError(
            f"task: the tokenizer has no pad token; name one of its tokens as task.pad_token{advice}"
        ) from error


def language_model(job: Job) -> nn.Module:
    """The trained model of a job on text, in full precision; code that a folder brings along is never run.

    Raises:
        SourceError: It cannot be loaded.
    """
    name, key = job.model.hf, "model.hf"
    # made as retrained models are, so that those kept in the cache are known to be of the same architecture
    return load_model(job) if name is None else _made(_configuration(job, name, key), _weights(job, name, key)).eval()


def untrained_language_model(job: Job) -> Callable[[], nn.Module]:
    """What retraining starts from: the same architecture, freshly initialised or with the weights of `recipe.base`.

    Configuration and weights are held by value, so that models kept in the cache are never those of another base.

    Raises:
        SourceError: It cannot be loaded.
    """
    name = job.recipe.base if job.recipe is not None else None
    if name is not None:
        return partial(_made, _configuration(job, name, "recipe.base"), _weights(job, name, "recipe.base"))
    if job.model.hf is None:
        return untrained(job)
    return partial(_made, _configuration(job, job.model.hf, "model.hf"), None)


def readable_examples(sources: Mapping[str, Source], task: CausalLM, job: Job) -> tuple[dict[str, Source], list[str]]:
    """The examples that the model can read, where the job says to drop the others, and how many these were.

    Args:
        sources: By their keys in the job.
        task: Of the job.
        job: It says what becomes of examples that are too long.

    Raises:
        ContextError: Examples are too long and not to be dropped, and how many of each source; or all are too long.
        EmptyAnswerError: Examples have nothing to measure.
    """
    found = {key: _tokenized(source, task, key) for key, source in sources.items()}
    dropped = {key: (each.dropped, len(sources[key].dataset)) for key, each in found.items() if each.dropped}
    if dropped and cast(CausalLMSection, job.task).too_long == "refuse":
        told = "; ".join(f"{key}: {count:,} of {of:,} examples" for key, (count, of) in dropped.items())
        raise ContextError(
            f"{told} have more than {task.longest} tokens; shorten them, or leave them out with `task.too_long: drop`"
        )
    notes = [
        f"{count:,} of {of:,} examples of {key} were too long and are left out" for key, (count, of) in dropped.items()
    ]
    read = {key: _only(source, found[key].kept) if key in dropped else source for key, source in sources.items()}
    return read, notes


def _tokenized(source: Source, task: CausalLM, key: str) -> Tokenized:
    try:
        return task.tokenized(source.dataset, too_long="drop")
    except DataError as error:
        raise type(error)(f"{key}: {error}") from error


def _only(source: Source, kept: Tensor) -> Source:
    return Source(subset(source.dataset, kept), lambda name: source.column(name)[kept.numpy()], fields=source.fields)


def _tokenizer(job: Job, section: CausalLMSection) -> PreTrainedTokenizerBase:
    key, name = ("task.tokenizer", section.tokenizer) if section.tokenizer else ("model.hf", job.model.hf or "")
    try:
        found: Any = cast(Any, AutoTokenizer).from_pretrained(_place(job, name), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{key}: the tokenizer of {name} cannot be loaded ({_first_line(error)}); name a folder that "
            "save_pretrained wrote it to, or a model of the hub, which needs the network"
        ) from error
    if section.pad_token is not None:
        if section.pad_token not in found.get_vocab():
            raise JobError("task.pad_token: the tokenizer has no such token; name one that it has")
        found.pad_token = section.pad_token
    return cast(PreTrainedTokenizerBase, found)


def _configuration(job: Job, name: str, key: str) -> dict[str, Any]:
    try:
        return cast(Any, AutoConfig).from_pretrained(_place(job, name), trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, key, error) from error


def _weights(job: Job, name: str, key: str) -> dict[str, Tensor]:
    load = cast(Any, AutoModelForCausalLM).from_pretrained
    try:
        with without_bars():
            model, report = load(
                _place(job, name),
                use_safetensors=True,  # a pickled checkpoint could run code
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _not_loaded(name, key, error) from error
    missing = sorted(cast("set[str]", report["missing_keys"]))
    if missing:
        raise SourceError(
            f"{key}: {name} is no trained language model: it lacks {len(missing)} tensors such as {missing[0]}; name a "
            "checkpoint of a causal language model"
        )
    return dict(cast("nn.Module", model).state_dict())


def _made(configuration: dict[str, Any], weights: dict[str, Tensor] | None) -> nn.Module:
    load = cast(Any, AutoModelForCausalLM).from_config
    model = cast(nn.Module, load(_config(configuration), trust_remote_code=False, dtype=torch.float32))
    if weights is not None:
        model.load_state_dict(weights)
    return model


def _config(configuration: dict[str, Any]) -> Any:
    return cast(Any, AutoConfig).for_model(**configuration)


def _place(job: Job, name: str) -> str:
    return str(job.path(name)) if job.path(name).exists() else name


def _not_loaded(name: str, key: str, error: Exception) -> SourceError:
    return SourceError(
        f"{key}: {name} cannot be loaded ({_first_line(error)}); name a folder that save_pretrained wrote as "
        "safetensors, or a causal language model of the hub, which needs the network"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
