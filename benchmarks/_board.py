"""One cell of the leaderboard: a method at a budget on one original of one request, held against the oracles."""

import time
import warnings
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from _board_data import (
    CACHE,
    CONFIRMATION,
    QUIET,
    Board,
    Request,
    classes_of,
    corpus,
    forgotten,
    oracle,
    original,
)
from _board_methods import Entry, entries
from expunge import (
    AuditSettings,
    Evidence,
    FineTune,
    Method,
    Problem,
    References,
    Relearning,
    Stage,
    Unlearned,
    split,
    unlearn,
)
from expunge.audit.gap import gap, gaps_of_oracles
from expunge.data import MapDataset, subset
from expunge.errors import DivergedError
from expunge.recommending import Spending
from expunge.storage import read_tensors, write_tensors
from expunge.training import reproducible
from expunge.training.seeds import generator

AUDIT = AuditSettings(
    Relearning(forget_examples=50, retain_examples=450, steps=(0, 10, 20, 40), batch_size=64, measured_on=300),
    examples=1000,
    bits=(8,),
    neighbours=0,
)
DEVELOPMENT_SEED = 0
_STRANGER = 90  # number of the oracle that methods are started from, which is no reference
_TIMED_STEPS = 8
_DEALS = 100

Floats = NDArray[np.float64]


@cache
def problem(request: Request, board: Board, seed: int) -> Problem:
    """The original of this seed, asked to forget."""
    data = corpus(request.corpus, board)
    parts = split(data.train, indices=forgotten(request, board))
    model = original(request, board, seed).model
    return Problem(model, data.task, parts.forget, parts.retain, data.holdout, classes_of(request), data.recipe)


@cache
def references(request: Request, board: Board) -> References:
    """The oracles and the first original, measured once for all seeds."""
    first = board.seeds[0] if request.part == CONFIRMATION else DEVELOPMENT_SEED
    oracles = [oracle(request, board, number).model for number in range(board.oracles)]
    return References.prepare(problem(request, board, first), oracles, settings=AUDIT, execution=QUIET)


@cache
def beside(request: Request, board: Board, seed: int) -> References:
    """The same oracles beside the original of another seed."""
    first, asked = references(request, board), problem(request, board, seed)
    with reproducible(1):
        return replace(first, problem=asked, original=first.sitting.portray(first.sitting.run.frozen(asked.model)))


def evidence_of(request: Request, board: Board, result: Unlearned, seed: int) -> Evidence:
    """What the audit finds of a result beside the original of this seed."""
    return replace(beside(request, board, seed), problem=result.problem).compare(result)


def forgotten_by(asked: Problem, method: Method, seed: int, share: float = 1.0) -> Unlearned:
    """Run a method, on a part of the retain set where it cannot be told to read less."""
    given = asked
    if share < 1:
        retain = cast(MapDataset, asked.retain)
        order = torch.randperm(len(retain), generator=generator(seed, "part of the retain set"))
        given = replace(asked, retain=subset(retain, order[: max(round(share * len(retain)), 1)].sort().values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # methods warn of weak effects, which the figures show
        result = unlearn(given, method, seed=seed, execution=QUIET)
    return replace(result, problem=asked)


def spending(request: Request, board: Board, budget: float) -> Spending:
    """What a budget amounts to."""
    asked = problem(request, board, board.seeds[0])
    rows = len(cast(MapDataset, asked.retain))
    return Spending.of(asked, budget * corpus(request.corpus, board).recipe.epochs * rows)


def tried(request: Request, board: Board, name: str, budget: float, multiple: float) -> dict[str, Any]:
    """The gap at one multiple of the published rate on a development request; none where the method diverged."""
    entry, spend = entries(request.kind)[name], spending(request, board, budget)
    asked = problem(request, board, DEVELOPMENT_SEED)
    try:
        result = forgotten_by(asked, entry.make(spend, multiple), DEVELOPMENT_SEED, entry.retained(spend))
    except DivergedError:
        return {"gap": None}
    return {"gap": gap(evidence_of(request, board, result, DEVELOPMENT_SEED)), "seconds": result.record.seconds}


def row(request: Request, board: Board, name: str, budget: float, multiple: float, seed: int) -> dict[str, Any]:
    """The figures of a method on one original."""
    asked = problem(request, board, seed)
    entry, method, share = _method(request, board, name, budget, multiple)
    before = _seconds_of_retraining(request, board)
    try:
        result = forgotten_by(asked, method, seed, share)
    except DivergedError:
        return {"gap": None}
    after = _seconds_of_retraining(request, board)
    found = evidence_of(request, board, result, seed)
    _keep_margins(request, board, _margins_name(name, budget, seed), result)
    return figures(found) | {
        "seconds": result.record.seconds,
        "share of a retrain": 2 * result.record.seconds / (before + after),
        "share of a retrain, examples": result.record.examples / (spending(request, board, 1.0).examples),
        "control": entry.control,
    }


def from_an_oracle(request: Request, board: Board, name: str, budget: float, multiple: float) -> dict[str, Any]:
    """The same where the method starts from a model that has nothing to forget: what it does besides forgetting."""
    start = oracle(request, board, _STRANGER).model
    asked = replace(problem(request, board, board.seeds[0]), model=start)
    _, method, share = _method(request, board, name, budget, multiple)
    try:
        result = forgotten_by(asked, method, board.seeds[0], share)
    except DivergedError:
        return {"gap": None}
    return figures(evidence_of(request, board, result, board.seeds[0]))


def untouched(request: Request, board: Board, seed: int) -> dict[str, Any]:
    """The figures of an original that was left as it is."""
    asked = problem(request, board, seed)
    result = forgotten_by(asked, _nothing(), seed)
    return figures(evidence_of(request, board, result, seed))


def oracles(request: Request, board: Board) -> dict[str, Any]:
    """What the oracles' own figures are, and the smallest true differences that the audit can find beside them."""
    asked = problem(request, board, board.seeds[0])
    evidence = evidence_of(request, board, forgotten_by(asked, _nothing(), board.seeds[0]), board.seeds[0])
    models = [oracle(request, board, number) for number in range(board.oracles)]
    return {
        "gaps": gaps_of_oracles(evidence),
        "measures": {
            f"{measure.name}, {measure.on}": {"oracles": measure.oracles, "detectable": measure.detectable}
            for measure in evidence.measures
        },
        "seconds": [model.seconds for model in models],
        "forget rows": len(cast(MapDataset, asked.forget)),
        "retain rows": len(cast(MapDataset, asked.retain)),
    }


def klom(request: Request, board: Board, name: str, budget: float, multiple: float) -> dict[str, Any]:
    """KLoM of the forget rows: one unlearned model of each seed beside the oracles, and what chance gives."""
    given = [_margins(request, board, name, budget, multiple, seed) for seed in board.seeds]
    theirs = np.stack([_signal(request, board, oracle(request, board, number).model)
                       for number in range(board.oracles)])  # fmt: skip
    pooled, random = np.concatenate([np.stack(given), theirs]), np.random.default_rng(0)
    dealt = [random.permutation(len(pooled)) for _ in range(_DEALS)]
    return {
        "median": _normal_divergence(pooled, len(given), np.arange(len(pooled))),
        "by chance": float(np.mean([_normal_divergence(pooled, len(given), order) for order in dealt])),
    }


def figures(evidence: Evidence) -> dict[str, Any]:
    """The measures by name, which of them deviate, and the verdict."""
    sides = {
        f"{measure.name}, {measure.on}": measure.side.value
        for measure in evidence.measures
        if measure.side.value in ("above", "below")
    }
    values = {f"{measure.name}, {measure.on}": measure.unlearned.value for measure in evidence.measures}
    return {"gap": gap(evidence), "verdict": evidence.verdict.value, "values": values, "deviating": sides}


def _normal_divergence(margins: Floats, count: int, order: NDArray[np.intp]) -> float:
    """Median over rows of KL(first `count` models || the others), margins (models, rows) taken for normal."""
    ours, theirs = margins[order[:count]], margins[order[count:]]
    variances = [np.maximum(part.var(0, ddof=1), 1e-4) for part in (ours, theirs)]
    moved = np.square(ours.mean(0) - theirs.mean(0))
    ratio = variances[0] / variances[1]
    return float(np.median(0.5 * (ratio - 1 - np.log(ratio) + moved / variances[1])))


def _method(request: Request, board: Board, name: str, budget: float, multiple: float) -> tuple[Entry, Method, float]:
    entry, spend = entries(request.kind)[name], spending(request, board, budget)
    return entry, entry.make(spend, multiple), entry.retained(spend)


def _nothing() -> Method:
    return FineTune((Stage(1e-12, steps=1),), weight_decay=0.0)


def _seconds_of_retraining(request: Request, board: Board) -> float:
    """What retraining would take now, by a few steps of it: other work on the machine slows both alike."""
    data = corpus(request.corpus, board)
    retain = cast(MapDataset, problem(request, board, board.seeds[0]).retain)
    rows, size = len(retain), data.recipe.batch_size
    part = TensorDataset(*(tensor[: _TIMED_STEPS * size] for tensor in data.train.tensors))
    short = replace(data.recipe, epochs=1)
    started = time.monotonic()
    short(part, 0)
    return (time.monotonic() - started) * data.recipe.epochs * rows / len(part)


def _signal(request: Request, board: Board, model: torch.nn.Module) -> Floats:
    sitting = references(request, board).sitting
    with reproducible(1):
        return sitting.signals(sitting.run.frozen(model))["forget"]


def _margins_name(name: str, budget: float, seed: int) -> str:
    return f"{name.replace(' ', '-')}-{budget:g}-seed{seed}.safetensors"


def _keep_margins(request: Request, board: Board, name: str, result: Unlearned) -> None:
    values = torch.from_numpy(_signal(request, board, result.model))
    write_tensors(_margins_folder(request, board) / name, {"margins": values}, {})


def _margins(request: Request, board: Board, name: str, budget: float, multiple: float, seed: int) -> Floats:
    """From the cache; where that is gone the method is run again, which gives the same bits."""
    file = _margins_folder(request, board) / _margins_name(name, budget, seed)
    if not file.exists():
        _, method, share = _method(request, board, name, budget, multiple)
        result = forgotten_by(problem(request, board, seed), method, seed, share)
        _keep_margins(request, board, file.name, result)
    return read_tensors(file)[0]["margins"].numpy()


def _margins_folder(request: Request, board: Board) -> Any:
    where = f"{request.corpus}-{request.kind}-{request.part}".replace(" ", "-")
    return CACHE / f"board-{board.name}-{board.models}-margins" / where
