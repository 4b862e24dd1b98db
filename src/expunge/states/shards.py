"""Shards and slices: training cut up so that a deletion costs a part of it (SISA).

Source: Bourtoule et al. 2021, Machine Unlearning (arXiv 1912.03817).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from expunge.data import FieldKey, MapDataset, View, column, subset
from expunge.errors import DataError, ForgetSetError, SettingError, StateError
from expunge.networks import Aggregation, ShardedEnsemble
from expunge.settings import require_one_of, require_whole
from expunge.states.base import digest_state
from expunge.states.rows import RowLedger, row_fields
from expunge.storage import digest_model
from expunge.tasks import Task
from expunge.training import Run, Supervised, reproducible, seed_globals

Checkpoint = Mapping[str, Tensor]
"""The parameters and buffers of a member after a slice, by name."""


@dataclass(frozen=True)
class Sharded:
    """A recipe: train one model a shard, slice after slice, and ask them together.

    Where an example goes is drawn by hashing its place in the dataset (in the whole dataset, where a subset is
    trained on) under a key that follows from the seed. So it depends neither on what the example says nor on any other
    example, and taking some away moves none. Shards and slices are therefore of equal size only on average.

    Slice r of a shard is trained on together with all slices before it, from where the model stood after them, for
    2 E / (slices + 1) epochs, which makes the cost of a shard that of E epochs (Bourtoule et al. 2021, section V-A).

    Args:
        recipe: How a model is built and trained; E is its number of epochs.
        shards: Number of models; a deletion of one example costs about one part in so many of training.
        slices: Parts of each shard; more make a deletion cheaper by up to a third again, and keep so many models.
        aggregation: How the members answer together.
        together: Field of an example, such as a person's number: examples that agree in it go to the same slice, so
            that deleting a person touches one shard. By default each example is on its own.
    """

    recipe: Supervised
    shards: int = 5
    slices: int = 1
    aggregation: Aggregation = Aggregation.MEAN
    together: FieldKey | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_whole(self, "shards", "slices")
        require_one_of(self, "aggregation", Aggregation)

    def plan(self, seed: int) -> str:
        """What must not change between training with a seed and a deletion, in words.

        Members are told by a digest of the first one's modules and of its weights before training, which hold no data.
        """
        recipe = self.recipe
        seed_globals(seed, "build", 0)
        member = recipe.build()
        modules = re.sub("0x[0-9a-f]+", "", repr(member))  # addresses in memory differ from process to process
        begun = hashlib.sha256((modules + digest_model(member)).encode()).hexdigest()
        return (
            f"{self.shards} shards, {self.slices} slices, {self.aggregation.value}, {recipe.epochs} epochs, batches of "
            f"{recipe.batch_size}, {recipe.optimizer}, augmented {recipe.augment is not None}, members that begin as "
            f"{type(member).__name__} {begun[:16]}"
        )

    def __call__(self, dataset: MapDataset, seed: int) -> ShardedEnsemble:
        """Train an ensemble with everything random drawn from `seed`."""
        return self.train(dataset, seed)[0]

    def train(self, dataset: MapDataset, seed: int) -> "tuple[ShardedEnsemble, ShardState]":
        """Train an ensemble, and keep what a later deletion needs."""
        with reproducible(self.recipe.execution.threads):
            return self.fit(dataset, Run(self.recipe.task, seed, self.recipe.execution))

    def fit(self, dataset: MapDataset, run: Run) -> "tuple[ShardedEnsemble, ShardState]":
        """Train within a run that may have checkpoints."""
        if len(dataset) == 0:
            raise ForgetSetError("there are no examples to train on")
        rows = Placement.of(self, dataset, run)
        trained = [self.train_shard(shard, 0, {}, rows, dataset, run) for shard in range(self.shards)]
        active = [bool((rows.shards == shard).any()) for shard in range(self.shards)]
        model = ShardedEnsemble([member for member, _ in trained], active, self.aggregation).to(run.device).eval()
        kept = {(shard, number): each for shard, (_, kept) in enumerate(trained) for number, each in kept.items()}
        return model, ShardState(rows, kept, run.seed, self.plan(run.seed), digest_model(model))

    def state_of(self, model: nn.Module, dataset: MapDataset, seed: int) -> "ShardState":
        """What `train` kept beside a model that it made of this dataset with this seed, where only the model is left.

        With several slices the ensemble is trained again, for the checkpoints between them.
        """
        with reproducible(self.recipe.execution.threads):
            run = Run(self.recipe.task, seed, self.recipe.execution)
            kept = self.fit(dataset, run)[1].checkpoints if self.slices > 1 else {}
            return ShardState(Placement.of(self, dataset, run), kept, seed, self.plan(seed), digest_model(model))

    def train_shard(
        self,
        shard: int,
        first: int,
        kept: Mapping[int, Checkpoint],
        rows: "Placement",
        dataset: MapDataset,
        run: Run,
    ) -> tuple[nn.Module, dict[int, Checkpoint]]:
        """Train a member from the checkpoint before a slice to its end.

        Args:
            shard: Which member.
            first: The slice to begin with.
            kept: Checkpoints after slices of this shard; that after slice `first - 1` is needed.
            rows: Where each example belongs.
            dataset: Holds the examples, at `rows.positions`.
            run: Where the phases belong to.

        Returns:
            The member, and the checkpoints after all slices but the last.
        """
        seed_globals(run.seed, "build", shard)
        model = self.recipe.untrained(run)
        if first:
            model.load_state_dict(kept[first - 1])
        checkpoints = {number: each for number, each in kept.items() if number < first}
        epochs = 2 * self.recipe.epochs / (self.slices + 1)
        for number in range(first, self.slices):
            seen = rows.positions[(rows.shards == shard) & (rows.slices <= number)]
            if len(seen):
                phase = f"shard-{shard:03d}-slice-{number:03d}"
                self.recipe.go_on(model, subset(dataset, seen), run, phase=phase, epochs=epochs)
            if number < self.slices - 1:
                checkpoints[number] = {name: each.cpu().clone() for name, each in model.state_dict().items()}
        return model.eval(), checkpoints


@dataclass(frozen=True)
class Placement:
    """Which rows there are, and where each goes; one entry a row, in the order of their positions.

    Args:
        ledger: Keyed digests of the rows.
        digests: (rows,) int64, the digest of each.
        positions: (rows,) int64, where each lies in the dataset that is trained on.
        order: (rows,) int64, rising: where each lay in the whole dataset.
        shards: (rows,) int64.
        slices: (rows,) int64.
    """

    ledger: RowLedger
    digests: Tensor
    positions: Tensor
    order: Tensor
    shards: Tensor
    slices: Tensor

    @classmethod
    def of(cls, sharded: Sharded, dataset: MapDataset, run: Run) -> "Placement":
        """Place the examples of a dataset."""
        order, sorting = View.of(dataset).indices.sort(stable=True)
        whose = (
            order.tolist() if sharded.together is None else column(dataset, sharded.together)[sorting.numpy()].tolist()
        )
        key = hashlib.sha256(f"shards {run.seed}".encode()).digest()
        words = [hashlib.blake2b(repr(each).encode(), key=key, digest_size=16).digest() for each in whose]
        shards = torch.tensor([int.from_bytes(word[:8], "big") % sharded.shards for word in words])
        slices = torch.tensor([int.from_bytes(word[8:], "big") % sharded.slices for word in words])
        inputs, others = row_fields(run.task, dataset)
        ledger = RowLedger.of(inputs, others)
        return cls(ledger, ledger.digests(inputs, others)[sorting], sorting, order, shards, slices)

    def without(self, task: Task, forget: MapDataset) -> "tuple[Placement, Tensor]":
        """The rows that stay, and for each row that was there whether it goes: (rows,) bool.

        Raises:
            UnknownRowError: A row was never trained on, or was deleted before.
            ForgetSetError: No row would stay.
        """
        inputs, others = row_fields(task, forget)
        ledger = self.ledger.remove(inputs, others)
        if len(ledger) == 0:
            raise ForgetSetError("the forget set is everything that the model was trained on; discard it instead")
        goes = torch.zeros(len(self.digests), dtype=torch.bool)
        went = Counter(self.ledger.present.tolist())
        went.subtract(ledger.present.tolist())
        for digest in went.elements():
            goes[((self.digests == digest) & ~goes).nonzero()[0]] = True
        return Placement(ledger, *(each[~goes] for each in self._columns())), goes

    def found_in(self, task: Task, dataset: MapDataset, wanted: Tensor) -> "Placement":
        """The wanted rows, (rows,) bool, with their positions in another dataset that holds them.

        Raises:
            DataError: Some of them are not there.
        """
        digests, positions = self.ledger.digests(*row_fields(task, dataset)).sort()
        chosen = Placement(self.ledger, *(each[wanted] for each in self._columns()))
        places = torch.searchsorted(digests, chosen.digests).clamp(max=len(digests) - 1)
        absent = int((digests[places] != chosen.digests).sum())
        if absent:
            raise DataError(
                f"{absent} of the {len(places)} rows that the shards to be retrained consist of are not in the retain "
                "set; pass everything that was trained on but the forget set, prepared as it was then"
            )
        return replace(chosen, positions=positions[places])

    def _columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.digests, self.positions, self.order, self.shards, self.slices


@dataclass(frozen=True)
class ShardState:
    """What sharded training keeps: where each row went, and the members as they stood between slices.

    Args:
        rows: Where each row went.
        checkpoints: By shard and slice; of the last slice none is kept, for that is the member.
        seed: What the ensemble was trained with.
        plan: What must not change until a deletion (`Sharded.plan`).
        model: Digest of the ensemble.
    """

    kind: ClassVar[str] = "shards"

    rows: Placement
    checkpoints: Mapping[tuple[int, int], Checkpoint]
    seed: int
    plan: str
    model: str

    @classmethod
    def record(cls, model: nn.Module, task: Task, dataset: MapDataset, **settings: Any) -> Self:
        """Refused: checkpoints between slices cannot be had of a model that is trained already."""
        raise SettingError(
            "shards are recorded while they are trained: `model, state = Sharded(recipe).train(dataset, seed)`"
        )

    def require(self, sharded: Sharded, model: nn.Module) -> ShardedEnsemble:
        """The model, if this is the state of it as this recipe trained it; else raise a StateError."""
        if not isinstance(model, ShardedEnsemble) or digest_model(model) != self.model:
            raise StateError(
                "the state belongs to another model, or to this one before a deletion; pass model and state that were "
                "trained, saved or returned together"
            )
        plan = sharded.plan(self.seed)
        if plan != self.plan:
            raise StateError(
                f"the state was recorded with {self.plan}, and the recipe is {plan}; pass the recipe that the "
                "ensemble was trained by"
            )
        return model

    def digest(self) -> str:
        """SHA-256 over everything the state holds."""
        return digest_state(self)

    def tensors(self) -> dict[str, Tensor]:
        """Places, digests of rows, and checkpoints."""
        rows = self.rows
        places = {"digests": rows.digests, "order": rows.order, "shards": rows.shards, "slices": rows.slices}
        return (
            {f"places.{name}": each for name, each in places.items()}
            | rows.ledger.tensors()
            | {
                f"checkpoint.{shard}.{number}.{name}": each
                for (shard, number), saved in self.checkpoints.items()
                for name, each in saved.items()
            }
        )

    def notes(self) -> dict[str, Any]:
        """Seed, plan and model."""
        return {"seed": self.seed, "plan": self.plan, "model": self.model}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], notes: dict[str, Any]) -> Self:
        """Make a state of what `tensors` and `notes` gave."""
        digests, order, shards, slices = (
            tensors[f"places.{name}"] for name in ("digests", "order", "shards", "slices")
        )
        # Positions are those in a dataset at hand; a state that is read from a file has none yet.
        rows = Placement(RowLedger.restore(tensors), digests, torch.arange(len(order)), order, shards, slices)
        checkpoints: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, each in tensors.items():
            if name.startswith("checkpoint."):
                _, shard, number, parameter = name.split(".", 3)
                checkpoints.setdefault((int(shard), int(number)), {})[parameter] = each
        return cls(rows, checkpoints, notes["seed"], notes["plan"], notes["model"])
