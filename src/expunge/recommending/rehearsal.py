"""A deletion that resembles the one asked for, of data that are to be kept, so that its outcome may be measured."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import MapDataset, subset, union
from expunge.errors import ForgetSetError, MissingNeedError
from expunge.problem import Problem
from expunge.training import Execution, Run, over_batches
from expunge.training.seeds import generator


@dataclass(frozen=True)
class Rehearsal:
    """A request made up from retained data.

    Attributes:
        problem: Forget other data; the data of the real request count as retained here.
        likeness: In what it resembles the real request, in words that name no data.
    """

    problem: Problem
    likeness: str


def rehearse(problem: Problem, seed: int, execution: Execution) -> Rehearsal:
    """Make up a request of the same kind for the same model.

    Where whole kinds, such as classes, are to be forgotten, as many other kinds are: those nearest in size, by lot
    where several are. Where rows are, it is as many other rows of the same groups, each with the loss under the model
    that is nearest to that of a row of the request: rows that are as easy, or as hard, for it.

    Args:
        problem: The real request.
        seed: Of the lot.
        execution: How losses are measured.

    Raises:
        MissingNeedError: There is no forget set or no retain set.
        ForgetSetError: Fewer kinds or rows are kept than are to be forgotten.
    """
    if problem.forget is None or problem.retain is None:
        missing = "forget" if problem.forget is None else "retain"
        raise MissingNeedError(
            f"a rehearsal resembles the request and is made of retained data: give the problem `{missing}=` a dataset"
        )
    run = Run(problem.task, seed, replace(execution, progress=False))
    asked, kept = _groups(run, problem, problem.forget), _groups(run, problem, problem.retain)
    kinds = set(asked.tolist())
    if kinds.isdisjoint(kept.tolist()):
        chosen = _other_kinds(asked, kept, seed)
        likeness = f"{len(kinds)} other {'kind' if len(kinds) == 1 else 'kinds'} as a whole"
    else:
        chosen = _similar_rows(run, problem, asked, kept, seed)
        likeness = f"{len(chosen)} other rows of the same groups and of similar loss"
    rest = torch.ones(len(kept), dtype=torch.bool)
    rest[chosen] = False
    named = tuple(sorted({int(kept[place]) for place in chosen.tolist()})) if problem.classes else ()
    return Rehearsal(
        replace(
            problem,
            forget=subset(problem.retain, chosen),
            retain=union(subset(problem.retain, rest.nonzero().flatten()), problem.forget),
            classes=named,
            state=None,
            near_duplicates=None,
        ),
        likeness,
    )


def _other_kinds(asked: NDArray[np.str_], kept: NDArray[np.str_], seed: int) -> Tensor:
    sizes, wanted = Counter(kept.tolist()), sorted(Counter(asked.tolist()).values())
    free = sorted(sizes)
    if len(free) < len(wanted):
        raise ForgetSetError(
            f"a rehearsal forgets as many other kinds as the request ({len(wanted)}), and only {len(free)} are kept; "
            "name a method instead"
        )
    order = torch.randperm(len(free), generator=generator(seed, "rehearsal")).tolist()
    drawn = [free[place] for place in order]
    chosen: list[str] = []
    for size in wanted:
        nearest = min((kind for kind in drawn if kind not in chosen), key=lambda kind: abs(sizes[kind] - size))
        chosen.append(nearest)
    return torch.from_numpy(np.flatnonzero(np.isin(kept, chosen)))


def _similar_rows(run: Run, problem: Problem, asked: NDArray[np.str_], kept: NDArray[np.str_], seed: int) -> Tensor:
    """For each row of the request, by lot, the row of its group that is nearest in loss and not taken yet."""
    known = run.frozen(problem.model)

    def losses(data: MapDataset) -> NDArray[np.float64]:
        return torch.cat(over_batches(run, known, data, problem.task.losses)).double().cpu().numpy()

    theirs, ours = losses(cast(MapDataset, problem.forget)), losses(cast(MapDataset, problem.retain))
    free = np.ones(len(kept), dtype=bool)
    chosen: list[int] = []
    for place in torch.randperm(len(asked), generator=generator(seed, "rehearsal")).tolist():
        same = np.flatnonzero(free & (kept == asked[place]))
        candidates = same if len(same) else np.flatnonzero(free)
        if not len(candidates):
            raise ForgetSetError(
                f"a rehearsal needs as many other rows as the request has ({len(asked)}), and {len(kept)} are kept; "
                "name a method instead"
            )
        nearest = int(candidates[np.abs(ours[candidates] - theirs[place]).argmin()])
        chosen.append(nearest)
        free[nearest] = False
    return torch.tensor(sorted(chosen))


def _groups(run: Run, problem: Problem, data: MapDataset) -> NDArray[np.str_]:
    """The group of each row, such as its class: (rows,)."""
    model = problem.model
    found: Sequence[list[str]] = over_batches(run, model, data, lambda _, batch: list(problem.task.groups(batch)))
    return np.asarray([group for batch in found for group in batch])
