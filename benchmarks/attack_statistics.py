"""How long the statistics of all membership attacks take once signals are there.

1,000 forget examples, 64 shadows, 64 oracles.

Signals are drawn at random: what they are does not change the work. Run: make bench BENCH=attack_statistics
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from _results import machine
from expunge.audit import examples
from expunge.audit.membership import Attackers
from expunge.audit.portrait import FORGET, LOSS, Observation, Portrait
from expunge.audit.shadows import ShadowSignals

EXAMPLES, MODELS, REPEATS = 1000, 64, 3


def portrait(random: np.random.Generator) -> Portrait:
    """A portrait with random signals in every set."""

    def seen() -> Observation:
        signals = random.normal(2, 2, EXAMPLES)
        hits = (random.random(EXAMPLES) < 0.9).astype(float)
        groups = np.asarray(["0", "1"])[random.integers(0, 2, EXAMPLES)]
        scores = {name: random.normal(size=EXAMPLES) for name in (LOSS, "confidence", "entropy", "modified entropy")}
        return Observation({"accuracy": hits}, groups, signals, scores, None)

    sets = {name: seen() for name in (FORGET, "retain", "holdout")}
    return Portrait(sets, torch.randn(EXAMPLES, 10), {}, {}, {}, {}, None)


def seconds() -> dict[str, float]:
    """Wall time of each part."""
    random = np.random.default_rng(0)
    unlearned, original, *oracles = (portrait(random) for _ in range(MODELS + 2))
    signals = {name: random.normal(2, 2, (MODELS, EXAMPLES)) for name in (FORGET, "retain", "holdout")}
    shadows = ShadowSignals(random.normal(2, 2, (MODELS, EXAMPLES)), signals)
    taken: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        taken[name] = time.perf_counter() - started

    started = time.perf_counter()
    attackers = Attackers(unlearned, original, oracles, shadows, 0)
    attackers.attacks()
    timed("attacks on the unlearned model, the original and every oracle", started)
    started = time.perf_counter()
    for model in (unlearned, original, *oracles):
        attackers.taken_for_unlearned(model)
    timed("U-LiRA's guesses for every model", started)
    started = time.perf_counter()
    found = examples.epsilons(shadows, oracles)
    examples.leaks(unlearned, oracles, shadows, found, range(EXAMPLES))
    timed("epsilon by example and the worst leaks", started)
    started = time.perf_counter()
    examples.margins(shadows, oracles, 0)
    timed("KLoM on three sets, 200 deals each", started)
    return taken | {"all": sum(taken.values())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="quick")
    size = parser.parse_args().size
    runs = [seconds() for _ in range(REPEATS)]
    result = {
        "machine": machine(),
        "examples": EXAMPLES,
        "shadows": MODELS,
        "oracles": MODELS,
        "seconds": {name: [round(run[name], 3) for run in runs] for name in runs[0]},
    }
    path = Path(__file__).parent / "results" / f"attack_statistics-{size}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for name, values in result["seconds"].items():
        print(f"{name}: {values}")
