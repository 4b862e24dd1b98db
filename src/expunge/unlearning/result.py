"""A model after forgetting, with its record: saving and loading them."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.errors import SavedModelError
from expunge.image_models.base import part_shared
from expunge.methods import Method
from expunge.pretrained import PRETRAINED_FOLDER, read_pretrained, written_pretrained
from expunge.problem import DeletionState, Problem
from expunge.states import STATE_FILE, load_state, state_bytes
from expunge.storage import digest_model, digest_tensors, json_bytes, read_tensors, tensors_bytes, write_files
from expunge.tasks import CausalLM
from expunge.training import reproducible
from expunge.unlearning.record import RECORD_FILE, Choice, Record, describe_data, keyed, plain, read_record

MODEL_FILE = "model.safetensors"
KEY_FILE = "forget.key"


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """A model after forgetting.

    Attributes:
        model: The new model, in evaluation mode.
        record: What was done.
        problem: What was asked for.
        key: The secret of the record's digests.
        method: What forgot; None of a result that was read from a folder without saying so.
        state: The problem's deletion state without the deleted rows, for the next request; None where there is none.
    """

    model: nn.Module
    record: Record
    problem: Problem = dataclasses.field(repr=False)
    key: bytes = dataclasses.field(repr=False)
    method: Method | None = dataclasses.field(default=None, repr=False)
    state: DeletionState | None = dataclasses.field(default=None, repr=False)

    def started_from(self, model: nn.Module) -> bool:
        """Whether a model is the original that this one was made from, told by the record's keyed digest."""
        return keyed(digest_model(model), self.key) == self.record.original_digest

    def chosen_by(self, choice: Choice | None) -> "Unlearned":
        """The same with the record saying how the method was chosen, sealed anew; as it is where nothing is to say."""
        if choice is None:
            return self
        record = self.record.model_copy(update={"choice": choice}).sealed(self.key)
        return dataclasses.replace(self, record=record)

    def save(self, folder: str | Path, *, key_path: str | Path | None = None) -> None:
        """Write the weights, the record and, readable by the owner only, the key and the state.

        The weights of a Hugging Face language model go into a folder `model`, as `save_pretrained` writes it, with the
        task's tokenizer; those of another model into `model.safetensors`.

        Args:
            folder: Where to; it is made where it is missing.
            key_path: File for the key, if it is not to lie in the folder: whoever has the key and the record can test
                guesses about the data, so keep the key out of a folder that is to be shared.

        Raises:
            OutputError: The folder cannot be written or the disk is full; files already there stay as they were.
        """
        folder = Path(folder)
        key = _key_file(folder, key_path)
        contents = {key: self.key, folder / RECORD_FILE: json_bytes(self.record.model_dump(mode="json"))}
        private = {key}
        if self.state is not None:
            contents[folder / STATE_FILE] = state_bytes(self.state)
            private.add(folder / STATE_FILE)
        if isinstance(self.problem.task, CausalLM) and isinstance(self.model, PreTrainedModel):
            with written_pretrained(self.model, self.problem.task.tokenizer, folder):
                write_files(contents, private=private)
        else:
            write_files({folder / MODEL_FILE: tensors_bytes(self.model.state_dict())} | contents, private=private)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        problem: Problem,
        *,
        key_path: str | Path | None = None,
        method: Method | None = None,
    ) -> "Unlearned":
        """Read what `save` wrote.

        Args:
            folder: Where it was saved.
            problem: The problem it answers; its model gives the architecture and must be the recorded original. Its
                sets must be the recorded ones; one that it lacks, because the data are deleted, is not compared.
            key_path: File of the key, if it does not lie in the folder.
            method: What forgot, for an audit with shadows; it must be the recorded one.

        Raises:
            SavedModelError: A file is missing or damaged, weights and record do not belong together, or model or data
                of the problem are others than those recorded; or the record was changed.
        """
        folder = Path(folder)
        record = read_record(folder)
        if method is not None and (type(method).__name__, plain(dataclasses.asdict(method))) != (
            record.method,
            record.settings,
        ):
            raise SavedModelError(f"{folder / RECORD_FILE} speaks of another method, or of other settings of it")
        path, tensors = _saved_weights(folder, problem.model)
        if digest_tensors(tensors) != record.result_digest:
            raise SavedModelError(
                f"{path} does not match {RECORD_FILE}: the weights were changed or belong to another "
                "run; restore both files from the same run"
            )
        key = read_key(_key_file(folder, key_path))
        if keyed(digest_model(problem.model), key) != record.original_digest:
            raise SavedModelError(
                f"the problem's model is not the original that {folder / RECORD_FILE} speaks of, or the key is that of "
                "another run; load the weights that unlearning started from, and the key that was saved with the record"
            )
        if not record.is_sealed_by(key):
            raise SavedModelError(
                f"{folder / RECORD_FILE} is not what was written: its seal does not fit what it says; restore it "
                "from a copy, or unlearn again"
            )
        model = copy.deepcopy(problem.model).requires_grad_(True).eval()
        _part_untied(model, tensors)
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise SavedModelError(f"the saved weights do not fit the problem's model: {error}") from error
        _require_recorded_data(problem, record, key, folder)
        return cls(model, record, problem, key, method, _recorded_state(record, key, folder))


def read_key(path: Path) -> bytes:
    """The secret of a record's digests.

    Raises:
        SavedModelError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SavedModelError(
            f"the key {path} cannot be read ({error.strerror}); restore it from a copy, or say where it "
            "lies (key_path=, or `key` in the job)"
        ) from error


def _saved_weights(folder: Path, like: nn.Module) -> tuple[Path, dict[str, Tensor]]:
    """Where the weights of a saved run lie, and what they are."""
    path = folder / PRETRAINED_FOLDER
    if path.is_dir():
        return path, read_pretrained(path, like)
    return folder / MODEL_FILE, read_tensors(folder / MODEL_FILE)[0]


def _key_file(folder: Path, key_path: str | Path | None) -> Path:
    return folder / KEY_FILE if key_path is None else Path(key_path)


def _recorded_state(record: Record, key: bytes, folder: Path) -> DeletionState | None:
    if record.state is None or record.state.after is None:
        return None
    state = load_state(folder)
    if keyed(state.digest(), key) != record.state.after:
        raise SavedModelError(
            f"{folder / STATE_FILE} does not match {RECORD_FILE}: the state belongs to another run, or it was used "
            "since; restore both files from the same run"
        )
    return state


def _part_untied(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give weights that the original shares, and that a method has parted, a place of their own each."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    whole = {name for shared in names.values() for name in shared}
    for first, *others in names.values():
        apart = {
            name
            for name in others
            if name in tensors and first in tensors and not torch.equal(tensors[name], tensors[first])
        }
        part_shared(model, whole - apart)


def _require_recorded_data(problem: Problem, record: Record, key: bytes, folder: Path) -> None:
    with reproducible():
        found = describe_data(problem, key)
    changed = [name for name, recorded in record.data.items() if found.get(name, recorded) != recorded]
    if changed:
        raise SavedModelError(
            f"the {' and the '.join(changed)} set {'is' if len(changed) == 1 else 'are'} not what "
            f"{folder / RECORD_FILE} speaks of: the data, or how they are read and parted, have changed since; restore "
            "them, or unlearn again"
        )
