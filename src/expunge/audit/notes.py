"""What a reader must know about the evidence: conditions under which figures mean less than they seem to."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from expunge.audit.decision import FEWEST_ORACLES
from expunge.audit.membership import FEWEST_UNSEEN, HOLDOUT, Draw, saturated
from expunge.audit.portrait import Portrait
from expunge.data import MapDataset, View
from expunge.storage import update_digest
from expunge.tasks import Batch, Task
from expunge.training.batches import in_order
from expunge.training.evaluation import EVALUATION_BATCH

_FAR_BELOW = 0.1
_MOST_SHARED = 0.1  # a limit of equivalence is then a tenth too wide for the examples that are not shared


@dataclass(frozen=True)
class Conditions:
    """What the evidence rests on.

    Attributes:
        notes: What a reader must know.
        reservations: Why no model can be called indistinguishable from retraining, as sentences.
        unusable: Why nothing can be said at all, in a sentence, if so.
    """

    notes: list[str]
    reservations: list[str]
    unusable: str = ""


def conditions_of(
    task: Task, forget: MapDataset, retain: MapDataset, original: Portrait, oracles: Sequence[Portrait], seed: int
) -> Conditions:
    """Duplicates across forget and retain set, references that are no match for the original, attacks left out."""
    notes: list[str] = []
    reservations: list[str] = []
    shared = duplicates(task, forget, retain)
    if shared:
        notes.append(
            f"{shared} forget example{'s are' if shared > 1 else ' is'} also in the retain set, bit for bit: every "
            "oracle has seen them, so no measure can tell whether they were forgotten; remove them from the retain set"
        )
    if shared > _MOST_SHARED * len(forget):
        reservations.append(
            f"{shared} of {len(forget)} forget examples are also in the retain set, which hides what is left of the "
            "others; remove them there."
        )
    wanted = float(original.sets["retain"].headline.mean())
    reached = [float(oracle.sets["retain"].headline.mean()) for oracle in oracles]
    poor = [number for number, quality in enumerate(reached, start=1) if quality < wanted - _FAR_BELOW]
    if poor:
        which = (
            f"oracle {poor[0]} reaches" if len(poor) == 1 else f"{len(poor)} of {len(reached)} oracles reach at worst"
        )
        notes.append(
            f"{which} {min(reached):.3f} on the retain set, the original {wanted:.3f}: the recipe does not train as "
            "the original was trained, so the comparison says little; mend the recipe"
        )
    if len(oracles) >= FEWEST_ORACLES and saturated(oracles):
        notes.append(
            "the oracles' confidence in the forget set is saturated, the same to the last bit, so single examples and "
            "U-LiRA are left out; scale the inputs as for training, or train less"
        )
    if Draw.prepare(original, seed) is None:
        missing = "is no holdout" if HOLDOUT not in original.sets else "are too few holdout examples"
        notes.append(
            f"membership was not attacked: there {missing} of the same kinds as the forget set ({FEWEST_UNSEEN} are "
            "needed, and as many others)"
        )
    useless = (
        "Most oracles are much worse than the original on the retain set, so nothing can be said; mend the recipe."
    )
    return Conditions(notes, reservations, useless if 2 * len(poor) > len(reached) else "")


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
