"""Recording a deletion state beside a model, and saving and loading it."""

from pathlib import Path
from typing import Any

from torch import nn

from expunge.data import MapDataset
from expunge.errors import SavedModelError, SettingError
from expunge.problem import DeletionState
from expunge.states.base import StateKind
from expunge.states.curvature import CurvatureState
from expunge.states.gradient_log import GradientLog
from expunge.states.moments import ClassMoments
from expunge.states.normal_classes import DiscriminantStatistics, NaiveBayesStatistics
from expunge.states.ridge import RidgeStatistics
from expunge.states.shards import ShardState
from expunge.states.updates import UpdateLog
from expunge.storage import read_tensors, tensors_bytes, write_bytes
from expunge.tasks import Task

STATE_FILE = "state.safetensors"


_CLASSES: tuple[type[StateKind], ...] = (
    CurvatureState,
    RidgeStatistics,
    NaiveBayesStatistics,
    DiscriminantStatistics,
    ShardState,
    GradientLog,
    ClassMoments,
    UpdateLog,
)
KINDS: dict[str, type[StateKind]] = {each.kind: each for each in _CLASSES}
"""Every kind of state by its name."""


def record(
    model: nn.Module, task: Task, dataset: MapDataset, *, kind: str = "curvature", **settings: Any
) -> DeletionState:
    """Record, while the training set is at hand, what later deletions need of it.

    Args:
        model: As trained on `dataset`.
        task: What it is for.
        dataset: The whole training set.
        kind: What to keep; see the classes of `expunge.states`.
        settings: Settings of that kind.

    Raises:
        SettingError: There is no such kind.
    """
    return _kind(kind).record(model, task, dataset, **settings)


def save_state(state: DeletionState, folder: str | Path) -> Path:
    """Write a state into a folder, readable by its owner only.

    Returns:
        The path of the file.

    Raises:
        OutputError: The folder cannot be written or the disk is full; a file already there stays as it was.
    """
    path = Path(folder) / STATE_FILE
    write_bytes(path, state_bytes(state), private=True)
    return path


def load_state(folder: str | Path) -> DeletionState:
    """Read what `save_state` wrote.

    Raises:
        SavedModelError: The file is missing, damaged, or of a kind that this version does not know.
    """
    path = Path(folder) / STATE_FILE
    tensors, notes = read_tensors(path)
    try:
        kind = KINDS[notes["kind"]]
        return kind.restore(tensors, notes["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise SavedModelError(
            f"{path} holds no deletion state that this version can read ({error}); record it again, or use the version "
            "that wrote it"
        ) from error


def state_bytes(state: DeletionState) -> bytes:
    """What `save_state` writes."""
    return tensors_bytes(state.tensors(), {"kind": state.kind, "notes": state.notes()})


def _kind(name: str) -> type[StateKind]:
    if name not in KINDS:
        raise SettingError(f"there is no kind of state {name!r}; there are: {', '.join(sorted(KINDS)) or 'none'}")
    return KINDS[name]
