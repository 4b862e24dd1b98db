"""The ways of forgetting that are held against one another, each a function of a world."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from _reversal import World
from expunge import NPO, Algorithm, FineTune, GradDiff, GradientReversal, Optimizer, Problem, Stage, Term
from expunge.data import subset
from expunge.methods._search import reach
from expunge.near_duplicates import Fuzziness, near_duplicates
from expunge.states import GradientLog
from expunge.states.gradient_capture import Rows
from expunge.states.influence import loss_gradient

Way = Callable[[World], dict[str, float]]
Direction = Mapping[nn.Parameter, Tensor]

PLAIN = GradientReversal(overshoot=0.0, repair_steps=0)
"""Calibrated and nothing else."""

MINHASH, EDIT = Fuzziness("minhash", 0.7), Fuzziness("edit", 0.9)


def ways(blocks: int) -> dict[str, Way]:
    """Every row of the table, by its name, for a model of so many blocks."""
    last, early = f"block:{blocks - 2}-{blocks - 1}", "block:0-1"
    found: dict[str, Way] = {"untouched": lambda world: world.measure(world.problem.model)}
    for epochs in ("first", "all", "last"):
        found[f"{epochs}, all layers"] = _reversal(epochs=epochs)
    for epochs in ("first", "all"):
        found[f"{epochs}, all layers, raw"] = _reversal(epochs=epochs, scale="raw")
        for name, layers in (("embedding", "embedding"), ("head", "head"), ("last two blocks", last)):
            found[f"{epochs}, {name}"] = _reversal(epochs=epochs, layers=(layers,))
    found["first, first two blocks"] = _reversal(epochs="first", layers=(early,))
    found["preset paper"] = lambda world: world.reversed(GradientReversal.preset("paper"))
    for epochs in ("first", "all"):
        found[f"{epochs}, all layers, c = 1"] = _uncalibrated(epochs, ("all",))
    found["first, embedding, c = 1"] = _uncalibrated("first", ("embedding",))
    for overshoot in (0.25, 0.5, 1.0):
        found[f"all, all layers, {overshoot:g} further, repair"] = _further(overshoot)
    for overshoot in (0.25, 0.5):
        found[f"all, embedding, {overshoot:g} further, repair"] = _further(overshoot, layers=("embedding",))
    found |= {
        "no log: gradient": lambda world: calibrated(world, _fresh(world)),
        "no log: gradient / v": lambda world: calibrated(world, _scaled(world, _fresh(world))),
        "no log: gradient / v, 0.5 further, repair": lambda world: calibrated(
            world, _scaled(world, _fresh(world)), overshoot=0.5, repair_steps=30
        ),
        "fuzzy: MinHash": lambda world: _fuzzy(world, MINHASH, PLAIN),
        "fuzzy: edit distance": lambda world: _fuzzy(world, EDIT, PLAIN),
        "iterative: 3 rounds": _reversal(rounds=3),
        "MinHash and 3 rounds": lambda world: _fuzzy(world, MINHASH, replace(PLAIN, rounds=3)),
        "control: first, of retained": lambda world: _control(world, "first"),
        "GradDiff, tuned rate": lambda world: _tuned(world, GradDiff),
        "NPO, tuned rate": lambda world: _tuned(world, NPO),
        "retained only, 30 steps at 1e-4": lambda world: _fine_tuned(world, Stage(1e-4, steps=30)),
        "retained only, an epoch at 1e-3": lambda world: _fine_tuned(world, Stage(1e-3)),
    }
    return found


def calibrated(
    world: World, direction: Direction, *, overshoot: float = 0.0, repair_steps: int = 0
) -> dict[str, float]:
    """What `GradientReversal` does, along any direction given by the original's parameters."""
    started = time.perf_counter()
    method, original = GradientReversal(), world.problem.model
    model = deepcopy(original)
    twin = dict(zip(original.parameters(), model.parameters(), strict=True))
    size = math.sqrt(sum(float(each.detach().double().square().sum()) for each in original.parameters()))
    unit = math.sqrt(sum(float(each.double().square().sum()) for each in direction.values()))

    def step(length: float) -> float:
        with torch.no_grad():
            for parameter, each in direction.items():
                twin[parameter].copy_(parameter + each * (length * size / unit))
        return float(world.each(model, "forget").mean())

    found = reach(
        step,
        world.target + overshoot,
        before=float(world.each(original, "forget").mean()),
        start=method.start,
        cap=method.cap,
        growth=method.growth,
        bisections=method.bisections,
    )
    step(found.length)
    if repair_steps:
        retain, run, target = world.sets["retain"], world.run, world.target
        run.train(
            "repair",
            model,
            [Term(retain, run.task.losses, batch_size=method.batch_size)],
            Optimizer(method.repair_learning_rate, Algorithm.ADAMW),
            steps=repair_steps,
            watch=lambda _: float(world.each(model, "forget").mean()) <= target,
        )
    seconds = time.perf_counter() - started
    return world.measure(model, seconds=seconds, c=found.length * size / unit, reached=float(found.reached))


def logged(
    world: World, ids: Iterable[int], epochs: Literal["first", "last", "all"], layers: tuple[str, ...] = ("all",)
) -> dict[nn.Parameter, Tensor]:
    """Sum of the logged updates of some examples, by parameter of the original."""
    log, model = world.log, world.problem.model
    slots = log.choose(layers)
    total = {slot.of(model): torch.zeros_like(slot.of(model)).detach() for slot in slots}
    for slot, part in log.updates([entry for each in ids for entry in log.entries(each, epochs)], slots):
        if isinstance(part, Rows):
            total[slot.of(model)].index_add_(0, part.index, part.values)
        else:
            total[slot.of(model)] += part.dense()
    return total


def _reversal(**settings: Any) -> Way:
    return lambda world: world.reversed(replace(PLAIN, **settings))


def _further(nats: float, **settings: Any) -> Way:
    """So many nats beyond the target, then the repair."""
    return lambda world: world.reversed(replace(PLAIN, overshoot=nats / world.gap, repair_steps=30, **settings))


def _uncalibrated(epochs: Literal["first", "last", "all"], layers: tuple[str, ...]) -> Way:
    """The logged updates taken back as they were, whatever comes of it."""

    def way(world: World) -> dict[str, float]:
        started = time.perf_counter()
        direction, model = logged(world, world.asked, epochs, layers), deepcopy(world.problem.model)
        with torch.no_grad():
            for parameter, own in zip(world.problem.model.parameters(), model.parameters(), strict=True):
                if parameter in direction:
                    own += direction[parameter]
        return world.measure(model, seconds=time.perf_counter() - started, c=1.0)

    return way


def _fresh(world: World) -> dict[nn.Parameter, Tensor]:
    model = deepcopy(world.problem.model)
    slots = GradientLog.choose(world.log, ("all",))
    gradient = loss_gradient(world.run, model, world.sets["forget"], slots)
    twin = dict(zip(model.parameters(), world.problem.model.parameters(), strict=True))
    return {twin[parameter]: each for parameter, each in gradient.items()}


def _scaled(world: World, direction: Direction) -> dict[nn.Parameter, Tensor]:
    """Divided by the root of the optimiser's second moment at the end of training."""
    state = world.optimizer.state
    trained = [each for group in world.optimizer.param_groups for each in group["params"]]
    roots = {
        parameter: state[own]["exp_avg_sq"].sqrt() + 1e-8
        for parameter, own in zip(world.problem.model.parameters(), trained, strict=True)
    }
    return {parameter: each / roots[parameter] for parameter, each in direction.items()}


def _control(world: World, epochs: Literal["first", "last", "all"]) -> dict[str, float]:
    """As many retained examples, drawn at random, reversed until the forget loss is where it is to be."""
    kept = sorted(set(range(len(world.training))) - set(world.asked))
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    return calibrated(world, logged(world, [kept[place] for place in order[: len(world.asked)]], epochs))


def _fuzzy(world: World, fuzziness: Fuzziness, method: GradientReversal) -> dict[str, float]:
    """Near-duplicates join the forget set; the figures are of what was asked for, and of all that was retained."""
    found = near_duplicates(world.texts, world.asked, fuzziness).positions.tolist()
    joined = sorted([*world.asked, *found])
    left = sorted(set(range(len(world.training))) - set(joined))
    forget, retain = (subset(world.training, torch.tensor(each)) for each in (joined, left))
    given = world.problem
    problem = Problem(given.model, given.task, forget, retain, given.holdout, state=given.state)
    return world.reversed(method, problem) | {"joined": float(len(found))}


def _tuned(world: World, kind: type[GradDiff] | type[NPO]) -> dict[str, float]:
    """Three epochs at the rate, found by bisection between 3e-5 and 3e-3, that just reaches the target."""
    low, high, best = math.log(3e-5), math.log(3e-3), dict[str, float]()
    started = time.perf_counter()
    for _ in range(5):
        rate = math.exp((low + high) / 2)
        begun = time.perf_counter()
        result = world.unlearned(kind(learning_rate=rate, epochs=3, batch_size=8))
        seconds = time.perf_counter() - begun
        found = world.measure(result.model, seconds=seconds, rate=rate)
        if found["forget"] >= world.target:
            high, best = math.log(rate), found
        else:
            low = math.log(rate)
            best = best or found
    return best | {"seconds of tuning": time.perf_counter() - started}


def _fine_tuned(world: World, stage: Stage) -> dict[str, float]:
    started = time.perf_counter()
    method = FineTune(stages=(stage,), algorithm=Algorithm.ADAMW, weight_decay=0.0, batch_size=8)
    model = world.unlearned(method).model
    return world.measure(model, seconds=time.perf_counter() - started)
