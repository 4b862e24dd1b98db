"""What was done to a model: enough to repeat it, and nothing about anyone's data."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from expunge.data import digest_dataset
from expunge.errors import SavedModelError
from expunge.privacy import Certificate, Tier
from expunge.problem import DeletionState, Problem
from expunge.storage import json_bytes
from expunge.training import PhaseRecord, seed_globals

RECORD_FILE = "record.json"


class DataRecord(BaseModel):
    """A dataset of the problem: how many examples, and a keyed digest (see `expunge.data.digest_dataset`)."""

    model_config = ConfigDict(extra="forbid")

    examples: int
    digest: str


class StateRecord(BaseModel):
    """A deletion state before and after: keyed digests, as those of data are."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    before: str | None = None
    after: str | None = None


class TrialRecord(BaseModel):
    """A method as it was tried on a rehearsal.

    Attributes:
        method: Its name.
        rate: Multiple of its published rate.
        settings: All settings.
        gap: Root mean square of the standardised distances from the rehearsal's oracles; None where it diverged.
        seconds: Wall time.
        note: Why it could not be chosen, if so.
    """

    model_config = ConfigDict(extra="forbid")

    method: str
    rate: float
    settings: dict[str, Any]
    gap: float | None
    seconds: float
    note: str = ""


class Choice(BaseModel):
    """How a method was chosen: what was tried on a rehearsal, nearest to retraining first.

    Attributes:
        budget: Of the run, in words.
        rehearsal: In what the rehearsal resembled the request.
        oracles: How many models were retrained for it.
        gaps_of_oracles: What each of them comes to among the others; empty where there are fewer than three.
        ranking: The trials.
        chosen: Which of them was run.
        left_out: By name of a method, why it was not tried.
    """

    model_config = ConfigDict(extra="forbid")

    budget: str
    rehearsal: str
    oracles: int
    gaps_of_oracles: list[float]
    ranking: list[TrialRecord]
    chosen: int
    left_out: dict[str, str]


class Record(BaseModel):
    """What was done to a model: enough to repeat it, and nothing about anyone's data.

    Digests of data, of states and of the original model are keyed with a secret that is kept in a file of its own.
    Without that file nobody can test a guess about who was forgotten (where training is deterministic, by training with
    the guess and comparing models); with it the owner can prove which set was meant. The digest of the result is plain:
    it says which model the record speaks of to those who hold that model, and nothing that the model does not say.

    The seal is an HMAC-SHA256 by the same secret over everything else. Whoever lacks the secret can change nothing in
    the record, the certificate included, that `Unlearned.load` would not notice; whoever has it can write another.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    method: str
    settings: dict[str, Any]
    seed: int
    guarantee: Tier
    certificate: Certificate | None = None
    classes: list[int]
    data: dict[str, DataRecord]
    near_duplicates: int | None = None
    state: StateRecord | None = None
    original_digest: str
    result_digest: str
    phases: list[PhaseRecord]
    seconds: float
    examples: int
    peak_memory_bytes: int
    execution: dict[str, Any]
    versions: dict[str, str]
    choice: Choice | None = None
    finished: datetime
    seal: str = ""

    def sealed(self, key: bytes) -> "Record":
        """The same record with its seal."""
        return self.model_copy(update={"seal": self._seal(key)})

    def is_sealed_by(self, key: bytes) -> bool:
        """Whether nothing in the record was changed since it was sealed by this key."""
        return hmac.compare_digest(self.seal, self._seal(key))

    def _seal(self, key: bytes) -> str:
        # a method of the user's own may have settings that no file can hold; it can be run, and not saved
        # records from before methods were chosen say nothing of a choice, and their seals hold
        unsaid = {"seal"} if self.choice is not None else {"seal", "choice"}
        said = self.model_dump(mode="json", exclude=unsaid, fallback=lambda value: type(value).__name__)
        return hmac.digest(key, json_bytes(said), "sha256").hex()


def read_record(folder: str | Path) -> Record:
    """Read the record of a saved run.

    Raises:
        SavedModelError: It is missing, damaged, or of another version.
    """
    path = Path(folder) / RECORD_FILE
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise SavedModelError(f"there is no {path}; pass the folder that a run was saved to") from error
    except ValidationError as error:
        raise SavedModelError(f"{path} is damaged or of another version: {error}") from error


def describe_data(problem: Problem, key: bytes) -> dict[str, DataRecord]:
    """Size and keyed digest of every dataset of a problem, by name."""
    seed_globals(0, "digest")  # a dataset that augments at random must give the same digest each time
    return {
        name: DataRecord(examples=len(dataset), digest=digest_dataset(dataset, key))
        for name, dataset in problem.datasets().items()
    }


def describe_state(
    before: DeletionState | None, after: DeletionState | None, key: bytes, digest_before: str | None
) -> StateRecord | None:
    """What a record says of the states before and after, where there is one; the digest before is known."""
    kinds = [state.kind for state in (after, before) if state is not None]
    if not kinds:
        return None
    first, second = (None if digest is None else keyed(digest, key) for digest in (digest_before, digest_of(after)))
    return StateRecord(kind=kinds[0], before=first, after=second)


def digest_of(state: DeletionState | None) -> str | None:
    """The digest of a state, where there is one."""
    return None if state is None else state.digest()


def keyed(digest: str, key: bytes) -> str:
    """A digest that cannot be linked between records, nor compared with that of what somebody else holds or made."""
    return hashlib.sha256(key + digest.encode()).hexdigest()


def plain(value: Any) -> Any:
    """Settings as JSON holds them."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return value.item()
    return value.value if isinstance(value, Enum) else value
