"""Pictures that stand in the forget set and in its proxy, found by their pixels."""

import hashlib
import secrets
from collections.abc import Iterator
from typing import cast

from torch import Tensor

from expunge.data import MapDataset
from expunge.errors import ForgetSetError
from expunge.problem import Problem
from expunge.tasks import ImageToImage
from expunge.training import Run, bar
from expunge.training.batches import in_order

_BATCH = 512
_NAMED = 5


def require_apart(problem: Problem, run: Run) -> None:
    """Raise where pictures to be forgotten are also in the surrogate, equal pixel by pixel as the task reads them.

    Each picture of both sets is read once and kept as a digest of 16 bytes, under a key that is drawn here and
    forgotten with them. Tasks other than `ImageToImage`, and problems without a surrogate, are left alone.

    Raises:
        ForgetSetError: There are some; the message says how many, and where in the surrogate the first of them stand.
    """
    if not isinstance(problem.task, ImageToImage) or problem.forget is None or problem.surrogate is None:
        return
    key, total = secrets.token_bytes(32), len(problem.forget) + len(problem.surrogate)
    with bar("compare forget and proxy", total, enabled=run.execution.progress) as display:

        def digests(dataset: MapDataset) -> Iterator[bytes]:
            for batch in in_order(run.task, dataset, min(_BATCH, run.execution.micro_batch_size or _BATCH)):
                images = cast(Tensor, batch["images"]).float().contiguous().cpu()
                yield from (hashlib.blake2b(row.numpy().tobytes(), digest_size=16, key=key).digest() for row in images)
                display.advance(len(images))

        wanted = list(digests(problem.forget))
        known, found = set(wanted), set[bytes]()
        places: list[int] = []
        for place, digest in enumerate(digests(problem.surrogate)):
            if digest in known:
                found.add(digest)
                places.append(place)
    if places:
        shared = sum(digest in found for digest in wanted)
        listed = ", ".join(map(str, places[:_NAMED])) + (", ..." if len(places) > _NAMED else "")
        raise ForgetSetError(
            f"{shared} of {len(wanted)} pictures to be forgotten are also in the surrogate, pixel by pixel, and the "
            f"model would be held on what it is to forget; take {len(places)} pictures out of the surrogate, at the "
            f"positions {listed}"
        )
