"""Filling a gradient log while a model is trained by a plain loop."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from expunge.data import MapDataset
from expunge.errors import DataError, SettingError, StateError
from expunge.states.gradient_capture import Capture
from expunge.states.gradient_entry import BatchEncoder, encode_tensors
from expunge.states.gradient_layers import Slot, Use
from expunge.states.gradient_log import GRADIENT, RATES, ROW_RATES, GradientLog
from expunge.states.gradient_rates import UpdateRates
from expunge.storage import digest_model
from expunge.training import Run, Supervised, reproducible


class GradientRecorder:
    """Writes the gradients of single examples into a log, out of the backward passes that train the model.

    Entries become part of the log when the optimiser has stepped, all of a step together.

    Args:
        log: Made for this model and training set.
        model: What is trained.
        optimizer: What trains it; needed where the log keeps updates.
        step: Optimiser steps taken before, where training goes on from a checkpoint; what was logged after it is
            dropped.

    Raises:
        StateError: The log was made for a model with other weights, or its training is finished.
        SettingError: The optimiser is missing or of an unknown kind, or training runs in several processes.

    Example:
        >>> with GradientRecorder(log, model, optimizer) as recorder:  # doctest: +SKIP
        ...     for ids, batch in batches:
        ...         with recorder.examples(ids):
        ...             task.losses(model, batch).mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> log = recorder.log  # doctest: +SKIP
    """

    def __init__(
        self, log: GradientLog, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, step: int = 0
    ) -> None:
        spread = torch.distributed.is_available() and torch.distributed.is_initialized()
        if spread and torch.distributed.get_world_size() > 1:
            raise SettingError("a gradient log is written by one process; train in one, or without a log")
        if log.model is not None:
            raise StateError(f"the training that {log.folder} logs is finished; make another log for another training")
        if log.settings.updates and optimizer is None:
            raise SettingError(
                "the log keeps the optimiser's updates; pass the optimiser, or make it with updates=False"
            )
        if step == 0 and digest_model(model) != log.started_from:
            raise StateError(
                "the log was made for a model with other weights; make it of the model as it is before training, or "
                "say with `step` from which optimiser step training goes on"
            )
        log.rewind(step)
        self.log, self.model, self.optimizer, self.step = log, model, optimizer, step
        self.rates = UpdateRates(model, optimizer, log.slots) if log.settings.updates and optimizer else None
        self.passes: dict[int, int] = {}
        for record in log.store.records:
            if record.kind == GRADIENT:
                self.passes[record.example] = record.epoch
        self.open: _Batch | None = None
        self.rows: list[tuple[int, int, list[tuple[Slot, Tensor]]]] = []
        self.logged = False
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Listen to the optimiser."""
        if self.rates is not None:
            self.handles += self.rates.hooks()
        if self.optimizer is not None:
            self.handles.append(self.optimizer.register_step_post_hook(lambda *_: self._stepped()))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Stop; where training came to its end, the log is bound to the model as it is now."""
        self.stop()
        if kind is None:
            self.log = self.log.sealed(self.model)

    def start(self) -> None:
        """Listen to the optimiser; `stop` ends it."""
        self.__enter__()

    def stop(self) -> None:
        """Hear no more; what belongs to no finished step is dropped."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self._drop()
        self.log.store.close()

    @contextmanager
    def examples(self, ids: Sequence[int] | Tensor, weights: Sequence[float] | Tensor | None = None) -> Generator[None]:
        """Record the forward and backward pass inside, of one batch.

        Args:
            ids: Positions of the examples in the training set, in the order of the batch.
            weights: (batch,) such that what is differentiated is Σ weights · (each example's own loss). By default one
                over the size of the batch: a mean over examples. Where it is a mean over tokens see `token_weights`;
                under accumulation divide by the number of batches a step as the loss is.
        """
        self.begin(ids, weights)
        try:
            yield
        except BaseException:
            self._drop()
            raise
        self.end()

    def begin(self, ids: Sequence[int] | Tensor, weights: Sequence[float] | Tensor | None = None) -> None:
        """Before the forward pass; see `examples`."""
        self.end()
        chosen = [int(each) for each in ids]
        known = len(self.log.examples.digests)
        outside = [each for each in chosen if not 0 <= each < known]
        if outside:
            raise DataError(
                f"{len(outside)} of the ids of a batch lie outside the training set of the log (0 to {known - 1}); "
                "pass positions in the dataset that the log was made for"
            )
        shares = [1 / len(chosen)] * len(chosen) if weights is None else [float(each) for each in weights]
        if len(shares) != len(chosen):
            raise DataError(f"a batch has {len(chosen)} ids and {len(shares)} weights; give each example one")
        epochs = [self._count(each) for each in chosen]
        if self.log.settings.epochs == "all" or 1 in epochs:
            self.open = _Batch(chosen, epochs, shares, Capture(self.model, self.log.slots, len(chosen)))
            self.open.capture.__enter__()

    def end(self) -> None:
        """After the backward pass; does nothing where nothing was begun."""
        batch, self.open = self.open, None
        if batch is None:
            return
        batch.capture.__exit__()
        encoder = BatchEncoder(batch.capture.gradients(), self.log.slots, self.log.settings.precision)
        for place, (example, epoch, weight) in enumerate(zip(batch.ids, batch.epochs, batch.weights, strict=True)):
            if self.log.settings.epochs == "first" and epoch > 1:
                continue
            self.log.store.append(GRADIENT, example, epoch, self.step, encoder.record(place, weight))
            if self.rates is not None:
                self.rows.append((example, epoch, [(slot, each[place][0]) for slot, each in encoder.rows.items()]))
            self.logged = True
        if self.optimizer is None:
            self._stepped()

    def _stepped(self) -> None:
        self.end()
        if self.logged:
            if self.rates is not None:
                self._append_rates(self.rates)
            self.log.store.commit(first=RATES)
        self.rows, self.logged = [], False
        self.step += 1

    def _append_rates(self, rates: UpdateRates) -> None:
        store, precision = self.log.store, self.log.settings.precision
        whole = [slot for slot in self.log.slots if slot.use is not Use.EMBEDDING]
        if whole:
            factors = [rates.of(self._parameter(slot)) for slot in whole]
            store.append(RATES, -1, 0, self.step, encode_tensors(factors, precision))
        for example, epoch, touched in self.rows:
            if touched:
                factors = [rates.of(self._parameter(slot), index) for slot, index in touched]
                store.append(ROW_RATES, example, epoch, self.step, encode_tensors(factors, precision))

    def _parameter(self, slot: Slot) -> nn.Parameter:
        return slot.of(self.model)

    def _count(self, example: int) -> int:
        self.passes[example] = self.passes.get(example, 0) + 1
        return self.passes[example]

    def _drop(self) -> None:
        if self.open is not None:
            self.open.capture.__exit__()
            self.open = None
        self.log.store.abandon()
        self.rows, self.logged = [], False


class _Batch:
    def __init__(self, ids: list[int], epochs: list[int], weights: list[float], capture: Capture) -> None:
        self.ids, self.epochs, self.weights, self.capture = ids, epochs, weights, capture


def log_training(
    recipe: Supervised, dataset: MapDataset, run: Run, folder: str | Path, **settings: Any
) -> tuple[nn.Module, GradientLog]:
    """Train by a recipe with a gradient log.

    Args:
        recipe: How.
        dataset: The training set.
        run: The seed and the machine; where it has checkpoints, training that was killed goes on with its log.
        folder: Where the log is to lie.
        settings: Of `LogSettings`.

    Returns:
        The model and its log. The model has the bits that it would have without a log, or those of another rounding
        where a position embedding is logged.
    """

    def recording(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> GradientRecorder:
        if step > 0:
            return GradientRecorder(GradientLog.open(folder), model, optimizer, step)
        log = GradientLog.create(folder, model, recipe.task, dataset, **settings)
        return GradientRecorder(log, model, optimizer)

    with reproducible(recipe.execution.threads):
        model = recipe.fit(dataset, run, recording)
    return model, GradientLog.open(folder).sealed(model)


def token_weights(labels: Tensor, tokens_of_step: Any = None, *, ignored: int = -100) -> Tensor:
    """Weights of examples in a mean over the tokens of a causal language model's batch: (batch,).

    Args:
        labels: (batch, positions); the first position is predicted from nothing and does not count.
        tokens_of_step: Tokens that the sum is divided by, where it is not that of this batch alone.
        ignored: Label of positions without a loss.
    """
    counts = (labels[:, 1:] != ignored).sum(1).double()
    return counts / (counts.sum() if tokens_of_step is None else float(tokens_of_step))
