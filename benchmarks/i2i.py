"""Image-to-image models forget: methods beside models retrained without what is forgotten, in five worlds.

Run it as `make bench BENCH=i2i`, with EXPUNGE_DATA_DIR naming a folder that holds mnist.npz, orl_faces.npz and
cifar10_jpeg.tar.xz; `python benchmarks/i2i.py --world mnist-mae` computes one world, `--page` writes the page of
those that are there. A cell is a model of one seed; those in the results file are not computed again, so an interrupted
run goes on.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from _cifar10 import SIZES, Size
from _i2i_figures import RELEARNING, RETAINED_BY_ATTACKER, Trained, figures, mean_image, parts, references, timed, train
from _i2i_tables import PAGE, draw, page, report
from _i2i_worlds import QUIET, World, worlds
from _results import Results
from expunge import (
    Algorithm,
    Extrapolate,
    FineTune,
    LatentRemap,
    MaxLoss,
    Method,
    NoisyLabel,
    Problem,
    RandomEncoder,
    RetainLabel,
    Schedule,
    Stage,
    unlearn,
)
from expunge.data import MapDataset, subset
from expunge.image_models import MaskedAutoencoder

WEIGHTS, RETAINED = (0.05, 0.2, 1.0), (200, 1000)


@dataclass(frozen=True)
class Row:
    """A method, and what it may see besides the forget set: `retain`, `proxy`, `none`, or so many retained images."""

    method: Method
    seen: str


def rows(world: World, size: Size) -> dict[str, Row]:
    """What is compared; costs are to stay near a tenth of training."""
    both, batch = parts(world, size), world.batch_size
    held = {"retain": len(both.retain), "proxy": len(world.proxy(size)), "none": 0}

    def epochs(seen: str, steps: float = world.steps) -> float:
        return steps * batch / max(batch, len(both.forget), held.get(seen) or int(seen if seen.isdecimal() else 0))

    def remap(seen: str, **changes: Any) -> Row:
        held_on: Any = {"proxy": "surrogate", "none": "none"}.get(seen, "retain")
        settings = {**world.remap, "held": held_on, "batch_size": batch, "epochs": epochs(seen), **changes}
        return Row(LatentRemap(**settings), seen)

    def towards(seen: str, **changes: Any) -> Row:
        settings = {**LatentRemap.presets["oracle"], "epochs": epochs(seen, world.steps // 3), **changes}
        settings |= {"tuning_learning_rate": world.tuning_rate}
        return remap(seen, tuning_epochs=world.tuning_steps / 2 * batch / held[seen], **settings)

    tuning: dict[str, Any] = {
        "learning_rate": world.tuning_rate,
        "epochs": epochs("retain", world.tuning_steps),
        "batch_size": batch,
    }
    found = {
        "paper, published rate": Row(LatentRemap.preset("paper", batch_size=batch, epochs=epochs("retain")), "retain"),
        "paper, retain": remap("retain"),
        "paper, proxy": remap("proxy"),
        "paper, forget only": remap("none"),
        "oracle, retain": towards("retain"),
        "oracle, proxy": towards("proxy"),
        "oracle, c found": towards("retain", extrapolation=None),
        "Extrapolate": Row(Extrapolate.preset("images", **tuning), "retain"),
        "Extrapolate, c found": Row(Extrapolate(**tuning), "retain"),
        "control: fine-tune": Row(_fine_tune(**tuning), "retain"),
    }
    if isinstance(world.family, MaskedAutoencoder):  # others have no mean of pictures
        shorter = epochs("retain", world.steps * 5 // 6)
        found["neighbours, retain"] = remap("retain", **LatentRemap.presets["neighbours"], epochs=shorter)
    for kind in (MaxLoss, NoisyLabel, RetainLabel, RandomEncoder):
        method = kind(learning_rate=world.baseline_rate, batch_size=batch, epochs=epochs("retain"))
        found[f"baseline: {kind.__name__}"] = Row(method, "retain")
    if world.sweeps:
        for weight in WEIGHTS:
            if weight == world.remap["forget_weight"]:
                continue
            found[f"alpha {weight:g}"] = remap("retain", forget_weight=weight)
        for count in RETAINED:
            found[f"{count} retained"] = remap(str(count))
    return found


def _fine_tune(*, learning_rate: float, epochs: float, batch_size: int) -> FineTune:
    stage = Stage(learning_rate, epochs=epochs, schedule=Schedule.ONE_CYCLE)
    return FineTune(stages=(stage,), algorithm=Algorithm.ADAMW, weight_decay=0.0, batch_size=batch_size)


def main() -> None:
    """Compute what is missing, draw the sweeps, and write the page of all that is there."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SIZES), default="quick")
    parser.add_argument("--world", choices=list(worlds()))
    parser.add_argument("--page", action="store_true", help="compute nothing")
    chosen = parser.parse_args()
    size = SIZES[chosen.size]
    for name, world in worlds().items():
        if not chosen.page and chosen.world in (None, name):
            compute(world, size)
            print(report(*computed(world, size)))
    there = {name: computed(world, size) for name, world in worlds().items() if complete(world, size)}
    for results, world, _ in there.values():
        if world.sweeps:
            drawn = draw(results, world, WEIGHTS, (*RETAINED, len(parts(world, size).retain)))
            for place in (results.figure, PAGE.parent / "images" / results.figure.name):
                drawn.savefig(place, metadata={"Date": None})
    if chosen.page and size.name == "quick":
        PAGE.write_text(page(there), encoding="utf-8")


def results_of(world: World, size: Size) -> Results:
    """What was computed of a world."""
    settings = {"world": world.settings(), "relearning": RELEARNING, "retained by attacker": RETAINED_BY_ATTACKER}
    return Results("i2i", size, settings, part=world.name)


def computed(world: World, size: Size) -> tuple[Results, World, list[str]]:
    """What a world's part of the page is made of."""
    return results_of(world, size), world, list(rows(world, size))


def complete(world: World, size: Size) -> bool:
    """Whether every cell of a world is there."""
    results, _, table = computed(world, size)
    wanted = [f"oracle {number}" for number in range(world.oracles)]
    wanted += [f"{seed}: {row}" for seed in range(world.seeds) for row in ("original", *table)]
    return {"mean image", *wanted} <= set(results.cells)


def compute(world: World, size: Size) -> None:
    """The cells of one world."""
    results, table = results_of(world, size), rows(world, size)
    oracles = cache(partial(_oracles, world, size))
    seen = cache(lambda: references(world, size, [found.model for found in oracles()]))
    results.cell("mean image", partial(mean_image, world, size))
    for number in range(world.oracles):
        results.cell(f"oracle {number}", partial(_oracle, world, size, oracles, seen, number))
    for seed in range(world.seeds):
        original = cache(partial(train, world, size, seed, forgotten=False))
        results.cell(f"{seed}: original", lambda original=original: figures(world, size, original(), seen()))
        for name, row in table.items():
            results.cell(f"{seed}: {name}", partial(unlearned, world, size, original, row, seed, seen))


def unlearned(
    world: World, size: Size, original: Callable[[], Trained], row: Row, seed: int, seen: Callable[[], list[Tensor]]
) -> dict[str, float]:
    """Figures of one row."""
    both, trained = parts(world, size), original()
    retain: MapDataset | None = both.retain if row.seen == "retain" else None
    if row.seen.isdecimal():
        order = torch.randperm(len(both.retain), generator=torch.Generator().manual_seed(seed))
        retain = subset(both.retain, order[: int(row.seen)])
    proxy = world.proxy(size) if row.seen == "proxy" else None
    problem = Problem(trained.model, world.task(), both.forget, retain, classes=world.forgotten, surrogate=proxy)
    measured: dict[str, float] = {}

    def forget() -> torch.nn.Module:
        result = unlearn(problem, row.method, seed=seed, execution=QUIET)
        for phase in result.record.phases:
            measured.update(phase.measured)
        return result.model

    found = timed(forget)
    return figures(world, size, found, seen()) | measured | {"cost": found.seconds / trained.seconds}


def _oracles(world: World, size: Size) -> list[Trained]:
    """Models retrained without the forget set; their seeds are those of no original."""
    return [train(world, size, 100 + number, forgotten=True) for number in range(world.oracles)]


def _oracle(
    world: World, size: Size, oracles: Callable[[], list[Trained]], seen: Callable[[], list[Tensor]], number: int
) -> dict[str, float]:
    others = [each for place, each in enumerate(seen()) if place != number]
    return figures(world, size, oracles()[number], others)


if __name__ == "__main__":
    main()
