"""Hugging Face models in the folders that `save_pretrained` writes and others load."""

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from expunge.errors import SavedModelError
from expunge.storage import ensure_writable, output_errors

PRETRAINED_FOLDER = "model"
"""Of a run's folder: what `AutoModelForCausalLM` and `AutoTokenizer` load."""

_STAGED = ".expunge-partial-model-"


def write_pretrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, name: str = PRETRAINED_FOLDER
) -> None:
    """Write model and tokenizer into `folder / name`, whole or not.

    Raises:
        OutputError: The folder cannot be written.
    """
    with written_pretrained(model, tokenizer, folder, name):
        """Nothing else has to succeed."""


@contextmanager
def written_pretrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, name: str = PRETRAINED_FOLDER
) -> Generator[None]:
    """Write model and tokenizer into `folder / name`, whole or not; what was there is back if the block inside fails.

    Raises:
        OutputError: The folder cannot be written.
    """
    ensure_writable(folder)
    path = folder / name
    for left in folder.glob(f"{_STAGED}*"):  # by a writer that was killed
        shutil.rmtree(left, ignore_errors=True)
    with output_errors(folder), tempfile.TemporaryDirectory(prefix=_STAGED, dir=folder) as staged:
        fresh, before = Path(staged) / "fresh", Path(staged) / "before"
        with without_bars():
            cast(Any, model).save_pretrained(fresh)
        if tokenizer is not None:
            cast(Any, tokenizer).save_pretrained(fresh)
        _synchronise(fresh)
        if path.exists():
            path.rename(before)
        try:
            fresh.rename(path)
            yield
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            if before.exists():
                before.rename(path)
            raise


def read_pretrained(path: Path, like: nn.Module) -> dict[str, Tensor]:
    """The state of the model in such a folder, of the class of `like`; code that a folder brings along is never run.

    Raises:
        SavedModelError: It is missing, damaged, or of another architecture.
    """
    kind = type(like)
    if not issubclass(kind, PreTrainedModel):
        raise SavedModelError(
            f"{path} holds a Hugging Face model, and the problem's model is a {kind.__name__}; pass the model that "
            "unlearning started from"
        )
    try:
        with without_bars():
            model, report = cast(Any, kind).from_pretrained(
                path,
                use_safetensors=True,  # a pickled checkpoint could run code
                trust_remote_code=False,
                local_files_only=True,
                dtype="auto",
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise SavedModelError(
            f"{path} is damaged or holds no such model ({str(error).strip().partition(chr(10))[0][:200]}); restore it "
            "from a copy, or run again"
        ) from error
    absent = sorted(cast("set[str]", report["missing_keys"]))
    if absent:
        raise SavedModelError(f"{path} lacks {len(absent)} tensors such as {absent[0]}; restore it from a copy")
    return dict(cast(nn.Module, model).state_dict())


@contextmanager
def without_bars() -> Generator[None]:
    """Reading and writing a file is no phase of a run, and its bar would stand between theirs."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _synchronise(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
