"""Whether influence scores and near-duplicates tell what leaving the forget set out really changes."""

import time
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from _reversal import World, pistol
from expunge.errors import ConvergenceError
from expunge.near_duplicates import Fuzziness, near_duplicates
from expunge.states.influence import Influence, influence

SCORES: dict[str, dict[str, Any]] = {
    "gradient, log, all epochs": {"kind": Influence.GRADIENT, "epochs": "all"},
    "gradient, log, first epoch": {"kind": Influence.GRADIENT, "epochs": "first"},
    "gradient, at the model": {"kind": Influence.GRADIENT},
    "activation": {"kind": Influence.ACTIVATION},
    "hvp": {"kind": Influence.HVP, "curvature_examples": 8},
    "inverse-hvp": {
        "kind": Influence.INVERSE_HVP,
        "curvature_examples": 8,
        "damping": 0.5,
        "iterations": 15,
        "tolerance": 0.5,
    },
}
LIKENESS = {"minhash": (0.6, 0.7, 0.8), "edit": (0.7, 0.8, 0.9)}


def influence_cell(world: World) -> dict[str, Any]:
    """Rank correlation of each score on the forget set with the change of each example's loss under leave-out.

    The change is the mean of the oracles minus the mean of two originals, which differ in the order of the data. How
    far it is noise shows in the rank correlation of the change between one oracle and original and another pair.
    """
    twin = world.recipe(world.training, 7919)
    originals = [world.problem.model, twin]
    found: dict[str, Any] = {}
    changes = {name: _changes(world, originals, name) for name in ("forget", "retain")}
    for name, (change, halves) in changes.items():
        found[f"noise ceiling, {name}"] = _ranks(*halves)
        found[f"mean change, {name}"] = float(change.mean())
    for label, settings in SCORES.items():
        started = time.perf_counter()
        try:
            scores = _scores(world, label, settings)
        except ConvergenceError as error:
            found[f"{label}, failed"] = str(error)
            continue
        for name, (change, _) in changes.items():
            found[f"{label}, {name}"] = _ranks(scores[name], change)
        found[f"{label}, seconds"] = time.perf_counter() - started
    return found


def duplicates_cell(world: World) -> dict[str, Any]:
    """How many near-duplicates are found, and how many of them are questions on contracts that share a party."""
    data, _ = pistol()
    asked = sorted({world.edges[place] for place in world.asked})
    near = set(data.neighbours(asked))
    meant = [place for place, edge in enumerate(world.edges) if edge in near]
    found: dict[str, Any] = {"meant": len(meant), "retained": len(world.texts) - len(world.asked)}
    for method, thresholds in LIKENESS.items():
        for threshold in thresholds:
            duplicates = near_duplicates(world.texts, world.asked, Fuzziness(method, threshold))  # pyright: ignore
            precision = duplicates.precision(meant) if len(duplicates) else None
            recall = duplicates.recall(meant) if meant else None
            found |= {
                f"{method} {threshold:g}, found": len(duplicates),
                f"{method} {threshold:g}, precision": precision,
                f"{method} {threshold:g}, recall": recall,
            }
    return found


def _changes(world: World, originals: list[Any], name: str) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    before, after = torch.stack([world.each(model, name) for model in originals]), world.losses[name]
    return after.mean(0) - before.mean(0), (after[0] - before[0], after[1] - before[1])


def _scores(world: World, label: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Of the training set with the forget set as the query, parted again."""
    log, asked = world.log if "log" in label else None, torch.zeros(len(world.training), dtype=torch.bool)
    asked[world.asked] = True
    scores = influence(world.problem.model, world.sets["forget"], world.training, world.run, log=log, **settings)
    return {"forget": scores[asked], "retain": scores[~asked]}


def _ranks(one: Tensor, other: Tensor) -> float:
    return float(spearmanr(one.numpy(), other.numpy()).statistic)
