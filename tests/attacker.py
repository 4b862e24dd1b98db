"""Somebody who has a state's file and guesses at a row."""

from pathlib import Path

import torch
from torch import Tensor

from expunge.states import STATE_FILE, RowLedger
from expunge.storage import read_tensors


def confirms(folder: Path, inputs: Tensor, others: Tensor) -> bool:
    """Whether the digest of a row, under the key that lies in the file, is anywhere in the bytes of the file.

    Args:
        folder: Where the state was saved.
        inputs: (1, ...), as the task reads them.
        others: (1,) or (1, columns): labels or targets.
    """
    path = folder / STATE_FILE
    key = read_tensors(path)[0]["rows.key"]
    digest = RowLedger(key, torch.empty(0, dtype=torch.int64)).digests(inputs, others)
    return digest.numpy().tobytes() in path.read_bytes()
