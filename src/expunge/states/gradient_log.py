"""The gradient log: what each example did to a model in each epoch of its training, kept as it happened."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import ValidationError
from torch import Tensor, nn

from expunge.data import MapDataset
from expunge.errors import SettingError, StateError
from expunge.states.gradient_capture import Dense, Part, Rows
from expunge.states.gradient_entry import Entry, decode, decode_tensors, scaled
from expunge.states.gradient_layers import Slot, Use, choose, slots_of
from expunge.states.gradient_rows import ExampleLedger, NumberedDataset
from expunge.states.gradient_settings import LogSettings, Manifest, SlotEntry, log_settings
from expunge.states.gradient_store import Located, RecordStore
from expunge.storage import digest_model, json_bytes, read_tensors, tensors_bytes, update_digest, write_files
from expunge.tasks import Task

Chosen = Literal["first", "last", "all"]
GRADIENT, ROW_RATES, RATES = "gradient", "row-rates", "rates"
_MANIFEST, _LEDGER = "log.json", "examples.safetensors"


@dataclass(frozen=True)
class GradientLog:
    """The gradients of single examples at each step of a training run, in a folder.

    An entry holds, for one example and one pass over it, the gradient of that example's own loss at the weights of that
    very step, dropout and all. The log is personal data: whoever has it can tell what was trained on. Its files are for
    their owner only, and `delete` takes an example out of them.

    Attributes:
        folder: Where it lies.
        settings: What is kept.
        slots: The parameters that are kept, each by the module that uses it.
        examples: Which example has which id.
        started_from: Digest of the model before training.
        model: Digest of the model that the log goes with; None while the training is not finished.
        hidden: Ids that this log speaks no more of, though their entries are there until `compact`.
    """

    kind: ClassVar[str] = "gradients"

    folder: Path
    settings: LogSettings
    slots: tuple[Slot, ...]
    examples: ExampleLedger = field(repr=False)
    started_from: str
    model: str | None
    store: RecordStore = field(repr=False)
    hidden: frozenset[int] = field(default=frozenset(), repr=False)

    @classmethod
    def create(cls, folder: str | Path, model: nn.Module, task: Task, dataset: MapDataset, **settings: Any) -> Self:
        """An empty log for a training run that is about to begin.

        Args:
            folder: Where it is to lie; it must not hold a log.
            model: As it is before training. Parameters that take no gradient are not logged.
            task: What it is trained for.
            dataset: The whole training set. An example's id is its position here.
            settings: Those of `LogSettings`.

        Raises:
            SettingError: There is no such setting, or a layer is named that the model does not have.
            StateError: The folder holds a log already.
            OutputError: The folder cannot be written.
        """
        chosen = log_settings(settings)
        slots = tuple(choose(slots_of(model), chosen.layers))
        store = RecordStore.create(Path(folder))
        ledger = ExampleLedger.of(task, dataset)
        log = cls(Path(folder), chosen, slots, ledger, digest_model(model), None, store)
        log._save()
        return log

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Read a log; what a kill left unfinished in it is passed over.

        Raises:
            StateError: There is none in the folder, or its files are damaged.
        """
        folder = Path(folder)
        try:
            manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
            settings = log_settings(manifest.settings)
            tensors = read_tensors(folder / _LEDGER)[0]
            ledger = ExampleLedger(tensors["key"], tensors["digests"])
        except (OSError, ValidationError, KeyError, TypeError) as error:
            raise StateError(
                f"{folder} holds no gradient log that can be read ({error}); pass the folder of one"
            ) from error
        slots = tuple(Slot(**each.model_dump()) for each in manifest.slots)
        return cls(folder, settings, slots, ledger, manifest.started_from, manifest.model, RecordStore(folder))

    @classmethod
    def record(cls, model: nn.Module, task: Task, dataset: MapDataset, **settings: Any) -> Self:
        """Refused: gradients of a training run cannot be had of a model that is trained already."""
        raise SettingError(
            "gradients are logged while a model is trained: `log = GradientLog.create(...)`, then train within "
            "`GradientRecorder(log, model, optimizer)`, with `GradientLogCallback(log)`, or by a recipe"
        )

    def numbered(self, task: Task, dataset: MapDataset) -> NumberedDataset:
        """The training set with each example's id in the field `example_id`, for a collator to hand on.

        Raises:
            StateError: It is another dataset than the log was made for, or in another order.
        """
        self.examples.require_order(task, dataset)
        return NumberedDataset(dataset)

    def require_model(self, model: nn.Module) -> None:
        """Raise StateError unless the model is that of the training's end, or was last returned with the log."""
        if self.model is None:
            raise StateError(
                f"the training that {self.folder} logs is not finished; let the recorder close, or call "
                "`log.sealed(model)`"
            )
        if digest_model(model) != self.model:
            raise StateError(
                "the gradient log belongs to another model: it goes with the weights that its training ended with, "
                "and after a deletion with those that the deletion returned; load the two from the same run"
            )

    def sealed(self, model: nn.Module) -> Self:
        """The log bound to the model that its training ended with, on the disk too."""
        self.store.close()
        bound = self.bound_to(model)
        bound._save()
        return bound

    def bound_to(self, model: nn.Module) -> Self:
        """The log that goes with a released model."""
        return replace(self, model=digest_model(model))

    def ids(self, task: Task, dataset: MapDataset) -> list[int]:
        """The ids of these examples.

        Raises:
            UnknownRowError: The log is of a training set without one of them, or one was deleted before.
        """
        return self._visible().ids(task, dataset)

    @property
    def holds_hidden(self) -> bool:
        """Whether the files still hold anything of what this log speaks no more of."""
        digests = self.examples.digests[sorted(self.hidden)]
        return bool((digests != 0).any()) or any(each.example in self.hidden for each in self.store.records)

    def ids_left(self) -> list[int]:
        """Every id that has an entry."""
        return sorted({each.example for each in self.store.records if each.kind == GRADIENT} - self.hidden)

    def choose(self, layers: Sequence[str]) -> list[Slot]:
        """The logged slots that patterns name; SettingError where one names nothing that was logged."""
        return choose(self.slots, layers)

    def entries(self, example: int, epochs: Chosen = "all") -> list[Located]:
        """Where an example's gradients lie, in the order of the epochs.

        Raises:
            StateError: There is no entry of this example, or its epoch was not logged.
        """
        if epochs != "first" and self.settings.epochs == "first":
            raise StateError(
                f"the gradient log holds the first epoch only, and {epochs!r} was asked for; pass epochs='first', or "
                "log all"
            )
        found = [] if example in self.hidden else self.store.of_example(GRADIENT, example)
        if not found:
            raise StateError(
                f"the gradient log in {self.folder} has no entry of example {example}: it was never trained on, "
                "deleted before, or lost with a kill; leave it out, or unlearn it by a method that needs no log"
            )
        return found if epochs == "all" else [found[0] if epochs == "first" else found[-1]]

    def read(self, entry: Located, layers: Iterable[Slot] | None = None) -> Entry:
        """The gradient of one entry, and none of the bytes of others."""
        wanted = frozenset(self.slots if layers is None else layers)
        return decode(self.store.read(entry), self.slots, self.settings.precision, wanted)

    def gradient(self, entry: Located, layers: Iterable[Slot] | None = None) -> dict[Slot, Part]:
        """Gradient of the example's own loss, by slot."""
        found = self.read(entry, layers)
        return {slot: scaled(part, 1 / found.weight) for slot, part in found.parts.items()} if found.weight else {}

    def updates(self, entries: Iterable[Located], layers: Sequence[Slot]) -> Iterator[tuple[Slot, Part]]:
        """By how much each gradient lowered the weights when it was used, to first order: parts to be added up.

        Raises:
            StateError: The log was made without updates.
        """
        if not self.settings.updates:
            raise StateError("the gradient log was made with updates=False and holds gradients alone; pass scale='raw'")
        whole = [slot for slot in self.slots if slot.use is not Use.EMBEDDING]
        steps: dict[int, list[Located]] = {}
        for entry in entries:
            steps.setdefault(entry.step, []).append(entry)
        for members in steps.values():
            rates: dict[Slot, Tensor] = {}
            if any(slot.use is not Use.EMBEDDING for slot in layers):
                content = self._one(RATES, members[0])
                tensors = decode_tensors(content, self.settings.precision, [slot.shape for slot in whole])
                rates = dict(zip(whole, tensors, strict=True))
            for entry in members:
                yield from self._updates_of(entry, layers, rates)

    def delete(self, ids: Iterable[int]) -> Self:
        """Take examples out of the files: their entries, and what of their steps no other example needs.

        The files are written anew without them and the old ones removed. What remains of a deleted example is that
        there was one at its position, and rates of steps that it shared with others, which depend on it no more than
        the optimiser's state does. Its digest goes too, so a second request for it is an UnknownRowError.

        Returns:
            The log without them. Other handles on the same folder must be opened again.
        """
        gone = self.hidden | set(ids)
        left = set(self._spoken_of(gone))
        self.store.keep(lambda each: each in left)
        after = replace(self, examples=self.examples.without(sorted(gone)), hidden=frozenset[int]())
        after._save()
        return after

    def without(self, ids: Iterable[int]) -> Self:
        """A log that speaks no more of these examples; their entries stay in the files until `compact`."""
        return replace(self, hidden=self.hidden | set(ids))

    def compact(self) -> Self:
        """Delete what is hidden."""
        return self.delete(())

    def rewind(self, step: int) -> None:
        """Drop what was logged from an optimiser step on, because the training goes on from a checkpoint before it."""
        self.store.keep(lambda each: each.step < step)

    def digest(self) -> str:
        """SHA-256 over what the log says: manifest, ledger, and the checksums of entries that it speaks of.

        Where entries lie does not count, nor do those that are hidden, so a log is the same before and after `compact`.
        """
        state = hashlib.sha256(json_bytes(self._manifest().model_dump(mode="json")))
        for name, tensor in sorted(self._visible().tensors().items()):
            update_digest(state, name.encode())
            update_digest(state, tensor)
        kept = self._spoken_of(self.hidden)
        entries = sorted((r.step, r.kind, r.example, r.epoch, r.length, r.checksum) for r in kept)
        state.update(json.dumps(entries).encode())
        return state.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """None: the log lies in a folder of its own."""
        return {}

    def notes(self) -> dict[str, Any]:
        """The folder, the model, and what is hidden."""
        return {"folder": str(self.folder.absolute()), "model": self.model, "hidden": sorted(self.hidden)}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], notes: dict[str, Any]) -> Self:
        """Open the log that `notes` speaks of."""
        log = cls.open(notes["folder"])
        return replace(log, model=notes["model"], hidden=frozenset(notes["hidden"]))

    def _spoken_of(self, gone: frozenset[int]) -> list[Located]:
        """The records that are left without some examples; rates stay as long as an example of their step does."""
        steps = {each.step for each in self.store.records if each.kind == GRADIENT and each.example not in gone}
        return [
            each
            for each in self.store.records
            if (each.step in steps if each.kind == RATES else each.example not in gone)
        ]

    def _updates_of(
        self, entry: Located, layers: Sequence[Slot], rates: dict[Slot, Tensor]
    ) -> Iterator[tuple[Slot, Part]]:
        parts = self.read(entry, layers).parts
        embedded = [slot for slot in self.slots if slot.use is Use.EMBEDDING]
        rows: dict[Slot, Tensor] = {}
        if any(slot in parts for slot in embedded):
            shapes = [tuple(cast(Rows, each).values.shape) for each in self.read(entry, embedded).parts.values()]
            tensors = decode_tensors(self._one(ROW_RATES, entry), self.settings.precision, shapes)
            rows = dict(zip(embedded, tensors, strict=True))
        for slot, part in parts.items():
            if isinstance(part, Rows):
                yield slot, Rows(part.index, part.values * rows[slot], part.count)
            else:
                yield slot, Dense(part.dense() * rates[slot])

    def _one(self, kind: str, entry: Located) -> bytearray:
        example, epoch = (entry.example, entry.epoch) if kind == ROW_RATES else (-1, 0)
        found = self.store.find(kind, example, epoch, entry.step)
        if found is None:
            raise StateError(
                f"the gradient log in {self.folder} lacks what the optimiser did in step {entry.step}; restore the "
                "folder from a copy, or pass scale='raw'"
            )
        return self.store.read(found)

    def _visible(self) -> ExampleLedger:
        return self.examples.without(sorted(self.hidden)) if self.hidden else self.examples

    def _manifest(self) -> Manifest:
        slots = [SlotEntry(**{each.name: getattr(slot, each.name) for each in fields(Slot)}) for slot in self.slots]
        settings = {each.name: getattr(self.settings, each.name) for each in fields(LogSettings)}
        return Manifest(settings=settings, slots=slots, started_from=self.started_from, model=self.model)

    def _save(self) -> None:
        manifest, ledger = self.folder / _MANIFEST, self.folder / _LEDGER
        contents = {
            manifest: json_bytes(self._manifest().model_dump(mode="json")),
            ledger: tensors_bytes(self.examples.tensors()),
        }
        write_files(contents, private={manifest, ledger})
