"""What a reader must know about the evidence: conditions under which figures mean less than they seem to."""

import hashlib
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from expunge.audit.membership import FEWEST_UNSEEN, HOLDOUT, MembershipTest
from expunge.audit.portrait import Portrait
from expunge.data import MapDataset, View
from expunge.storage import update_digest
from expunge.tasks import Batch, Task
from expunge.training.batches import in_order
from expunge.training.evaluation import EVALUATION_BATCH

_FAR_BELOW = 0.1


def notes_on(
    task: Task, forget: MapDataset, retain: MapDataset, original: Portrait, oracles: Sequence[Portrait], seed: int
) -> list[str]:
    """Duplicates across forget and retain set, references that are no match for the original, attacks left out."""
    notes: list[str] = []
    shared = duplicates(task, forget, retain)
    if shared:
        notes.append(
            f"{shared} forget example{'s are' if shared > 1 else ' is'} also in the retain set, bit for bit: every "
            "oracle has seen them, so no measure can tell whether they were forgotten; remove them from the retain set"
        )
    wanted = float(original.sets["retain"].headline.mean())
    for number, oracle in enumerate(oracles, start=1):
        reached = float(oracle.sets["retain"].headline.mean())
        if reached < wanted - _FAR_BELOW:
            notes.append(
                f"oracle {number} reaches {reached:.3f} on the retain set, the original {wanted:.3f}: the recipe does "
                "not train as the original was trained, so the comparison says little; mend the recipe"
            )
    if MembershipTest.prepare(original, seed) is None:
        missing = "is no holdout" if HOLDOUT not in original.sets else "are too few holdout examples"
        notes.append(
            f"membership was not attacked: there {missing} of the same kinds as the forget set ({FEWEST_UNSEEN} are "
            "needed, and as many others)"
        )
    return notes


def duplicates(task: Task, forget: MapDataset, retain: MapDataset) -> int:
    """How many forget examples stand in the retain set as well, equal bit for bit as the task reads them."""
    wanted = list(_digests(task, forget))
    found = set(_digests(task, retain)) & set(wanted)
    return sum(digest in found for digest in wanted)


def _digests(task: Task, dataset: MapDataset) -> Iterator[bytes]:
    # One by one where examples are put together, for texts are padded to the longest of their batch.
    together = EVALUATION_BATCH if isinstance(View.of(dataset).base, TensorDataset) else 1
    for batch in in_order(task, dataset, together):
        yield from _rows(batch)


def _rows(batch: Batch) -> Iterator[bytes]:
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    for row in zip(*leaves, strict=True):
        state = hashlib.sha256()
        for value in row:
            update_digest(state, value)
        yield state.digest()
