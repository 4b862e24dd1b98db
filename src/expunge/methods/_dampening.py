"""Making weights smaller that matter more to the forget set than to all data."""

import warnings
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from expunge.data import MapDataset, subset, union
from expunge.errors import ExpungeWarning
from expunge.problem import Problem
from expunge.training import Objective, Run, mean_by_batch, mean_by_example
from expunge.training.gradients import Reduction


def importances(
    problem: Problem, run: Run, objective: Objective, reduction: Reduction, batch_size: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the forget set, and what all data say of each weight, measured alike.

    Args:
        problem: Both sets.
        run: Where the two measurements belong to.
        objective: What is differentiated.
        reduction: Applied to gradients before they are averaged.
        batch_size: Examples whose gradients are averaged first, or None for none; where the forget set is smaller, all
            batches are as small, for the noise in a mean depends on it.
    """
    forget, retain = cast(MapDataset, problem.forget), cast(MapDataset, problem.retain)
    everything = union(forget, retain)
    found: list[dict[str, Tensor]] = []
    for name, dataset in (("forget", forget), ("all", everything)):
        phase = f"importance-{name}"
        if batch_size is None:
            found.append(mean_by_example(run, phase, problem.model, dataset, [objective], reduction))
            continue
        order = torch.randperm(len(dataset), generator=run.generator(phase))
        size, shuffled = min(batch_size, len(forget)), subset(dataset, order)
        found.append(mean_by_batch(run, phase, problem.model, shuffled, objective, reduction, size))
    return found[0], found[1]


def dampen(
    model: nn.Module,
    forget: Mapping[str, Tensor],
    everything: Mapping[str, Tensor],
    *,
    selection: float,
    dampening: float,
) -> float:
    """Multiply weights by min(dampening · I_all / I_forget, 1) in place where I_forget > selection · I_all.

    Returns:
        The share of weights that was selected.
    """
    selected = total = 0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            ours, alls = forget[name], everything[name]
            chosen = ours > selection * alls
            factor = (dampening * alls / ours).clamp(max=1)
            weight.copy_(torch.where(chosen, weight * factor, weight))
            selected += int(chosen.sum())
            total += weight.numel()
    return selected / total


def warn_if_nothing(run: Run, share: float, selection: float) -> None:
    """Say so where no weight was selected; the share is kept in the record."""
    record = run.phases[-1]
    record.measured["selected_share"] = share
    if share == 0:
        note = (
            f"nothing was forgotten: no weight matters {selection:g} times as much to the forget set as to all data, "
            "so the model is the original's; lower selection, or choose another method"
        )
        record.warnings.append(note)
        warnings.warn(note, ExpungeWarning, stacklevel=3)
