"""Which examples make up each step, as a pure function of seed, phase and step, and fetching them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, Sampler

from expunge.data import MapDataset, View
from expunge.tasks import Batch, Task
from expunge.training.objective import Term
from expunge.training.seeds import derive, generator, seed_globals


@dataclass(frozen=True)
class Request:
    """One forward pass: which examples of which term this process fetches."""

    term: int
    positions: Tensor  # (micro batch,) positions in the concatenated parts of the term, part after part
    step_examples: int  # examples of the term in this step, over all processes
    seed: int
    places: Tensor  # (micro batch,) of the examples among those that this process has of the term in the step
    own_examples: int  # how many those are
    idle: bool = False  # its examples belong to another process, and count for nothing here


@dataclass(frozen=True)
class Plan:
    """The order of examples over a phase.

    Args:
        terms: What is minimised: all terms at each step, or, with `passes`, one after the other.
        steps: Length of the phase.
        seed: Of the order.
        micro_batch_size: Most examples in one forward pass.
        rank: Of this process.
        processes: How many there are.
        even: Every process makes as many forward passes in a step as the others, idle ones where it has no examples
            left: those that hold parts of one model wait for one another in each.
        passes: Numbers of terms that take turns, each for one pass over its data.
    """

    terms: Sequence[Term]
    steps: int
    seed: int
    micro_batch_size: int | None = None
    rank: int = 0
    processes: int = 1
    even: bool = False
    passes: Sequence[int] | None = None

    def from_step(self, start: int) -> Iterator[list[Request]]:
        """For each step from `start` on, the forward passes of this process."""
        batches: dict[int, tuple[int, Sequence[Tensor]]] = {}
        turns = list(self._turns()) if self.passes is not None else None
        for step in range(start, self.steps):
            requests: list[Request] = []
            for number, term in enumerate(self.terms) if turns is None else [turns[step][:2]]:
                at = divmod(step, term.steps_per_epoch) if turns is None else turns[step][2:]
                epoch, within = at
                if number not in batches or batches[number][0] != epoch:
                    order = torch.randperm(term.length, generator=generator(self.seed, "order", number, epoch))
                    batches[number] = epoch, order.tensor_split(term.steps_per_epoch)
                batch = batches[number][1][within]
                mine = batch[self.rank :: self.processes]
                share = math.ceil(len(batch) / self.processes) if self.even else len(mine)
                pieces = math.ceil(share / (self.micro_batch_size or share))
                # Pieces of nearly equal size: BatchNorm cannot train on a remainder of one example.
                for piece, places in enumerate(torch.arange(len(mine)).tensor_split(pieces)):
                    seed = derive(self.seed, "fetch", step, number, piece, self.rank)
                    idle = len(places) == 0
                    taken = torch.zeros(1, dtype=torch.int64) if idle else places
                    shown = batch[:1] if idle else mine[taken]
                    order_of = _by_part(term, shown)
                    own = max(len(mine), 1)
                    requests.append(Request(number, shown[order_of], len(batch), seed, taken[order_of], own, idle))
            yield requests

    def _turns(self) -> Iterator[tuple[int, Term, int, int]]:
        """For each step which term, the how-manieth pass over it, and the step within."""
        done = [0] * len(self.terms)
        for number in self.passes or ():
            for within in range(self.terms[number].steps_per_epoch):
                yield number, self.terms[number], done[number], within
            done[number] += 1


def _by_part(term: Term, positions: Tensor) -> Tensor:
    """The order in which `fetch` puts the examples of several parts together, as indices: part after part."""
    if len(term.parts) == 1:
        return torch.arange(len(positions))
    ends = torch.tensor([len(part) for part in term.parts]).cumsum(0)
    return torch.searchsorted(ends, positions, right=True).argsort(stable=True)


def stream(plan: Plan, task: Task, start: int, workers: int) -> Iterator[list[tuple[Request, Batch]]]:
    """Fetch the batches of each step in order, in `workers` background processes or in this one."""
    steps = list(plan.from_step(start)) if workers else plan.from_step(start)
    if not workers:
        fetcher = _Fetcher(plan.terms, task)
        for requests in steps:
            yield [(request, fetcher[request]) for request in requests]
        return
    flat = [request for requests in steps for request in requests]
    loader = DataLoader(
        _Fetcher(plan.terms, task),
        batch_size=None,
        sampler=cast("Sampler[Any]", flat),
        num_workers=workers,
        generator=torch.Generator().manual_seed(plan.seed),
        collate_fn=_unchanged,
        persistent_workers=False,
    )
    batches = iter(loader)
    for requests in steps:
        yield [(request, next(batches)) for request in requests]


def fetch(task: Task, parts: Sequence[View], positions: Tensor) -> Batch:
    """One batch from positions in the concatenation of `parts`.

    Batches of several parts are joined where they are tensors of one shape; where they are not, as those of texts of
    different lengths, the examples are put together anew.
    """
    offsets = np.cumsum([0, *(len(part.indices) for part in parts)])
    batches: list[Batch] = []
    chosen_of: list[tuple[View, Tensor]] = []
    for part, low, high in zip(parts, offsets[:-1], offsets[1:], strict=True):
        chosen = positions[(positions >= int(low)) & (positions < int(high))] - int(low)
        if len(chosen):
            columns = part.columns(chosen)
            batches.append(task.stack(columns) if columns is not None else task.collate(part.examples(chosen)))
            chosen_of.append((part, chosen))
    if len(batches) == 1:
        return batches[0]
    if _joinable(batches):
        return tree_map(_concatenate, *batches)
    return task.collate([example for part, chosen in chosen_of for example in part.examples(chosen)])


def in_order(task: Task, dataset: MapDataset, batch_size: int) -> Iterator[Batch]:
    """All examples of a dataset, in their order."""
    view = View.of(dataset)
    for positions in torch.arange(len(dataset)).split(batch_size):
        yield fetch(task, [view], positions)


class _Fetcher(Dataset[Batch]):
    def __init__(self, terms: Sequence[Term], task: Task) -> None:
        self.views = [[View.of(part) for part in term.parts] for term in terms]
        self.task = task

    def __getitem__(self, request: Request) -> Batch:
        seed_globals(request.seed)
        return fetch(self.task, self.views[request.term], request.positions)


def _joinable(batches: Sequence[Batch]) -> bool:
    """Whether batches are tensors alone, which agree in shape but for the number of examples."""
    found = [[leaf.shape[1:] if isinstance(leaf, Tensor) else None for leaf in tree_leaves(batch)] for batch in batches]
    return all(shapes == found[0] and None not in shapes for shapes in found)


def _concatenate(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _unchanged(batch: Batch) -> Batch:
    return batch
