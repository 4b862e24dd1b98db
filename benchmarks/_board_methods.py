"""The rows of the leaderboard: every method for classifiers at a budget, and controls."""

from collections.abc import Callable
from dataclasses import dataclass

from _board_controls import BiasSham, FromScratch, RandomReset
from _board_data import CLASS, MEMORISED, PERSON, RANDOM, Request
from expunge import Classification, Method, Need
from expunge.recommending import CANDIDATES, Spending

KINDS = (CLASS, RANDOM, MEMORISED, PERSON)
WHOLE = (CLASS, PERSON)

ABSENT = {
    "Amnesiac": "undoes recorded steps; at batches of 64 a request of 2 % is in most steps, so all training would go",
    "GradientReversal": "needs gradients of single examples recorded at training; see its own benchmarks",
    "SISA": "needs an ensemble of shards, which is another model",
    "NewtonRemoval": "certifies heads, not networks; see [guarantees](guarantees.md)",
    "NoisyFineTune": "refuses models with statistics of BatchNorm",
    "ExactRidge, ExactNaiveBayes, ExactDiscriminant": "are for models in closed form",
}
"""Methods for classifiers that the leaderboard leaves out, and why."""


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard.

    Attributes:
        make: From budget and multiple to a method.
        kinds: Of requests that it is for.
        control: Whether it is there to be compared with.
        tuned: Whether there is a rate to choose.
        retained: Share of the retain set that it is given, where it cannot be told to read less.
    """

    make: Callable[[Spending, float], Method]
    kinds: tuple[str, ...] = KINDS
    control: bool = False
    tuned: bool = True
    retained: Callable[[Spending], float] = lambda _: 1.0


CONTROLS = {
    "random reset": Entry(
        lambda s, m: RandomReset(learning_rate=0.01 * m, epochs=s.epochs(), batch_size=s.batch_size), control=True
    ),
    "from scratch": Entry(lambda s, m: FromScratch(0.1 * m, epochs=s.epochs()), control=True),
    "bias sham": Entry(lambda s, m: BiasSham(), WHOLE, control=True, tuned=False),
}
ENTRIES = {
    name: Entry(
        candidate.make,
        WHOLE if Need.CLASSES in candidate.kind.needs else KINDS,
        control=name == "FineTune",
        retained=candidate.retained,
    )
    for name, candidate in CANDIDATES.items()
    if any(issubclass(Classification, task) for task in candidate.kind.tasks)
} | CONTROLS


def entries(kind: str) -> dict[str, Entry]:
    """The rows for a kind of request."""
    return {name: entry for name, entry in ENTRIES.items() if kind in entry.kinds}


def key(request: Request, name: str, budget: float) -> str:
    """How cells of a method at a budget begin."""
    return f"{request.title} · {name} · {budget:.0%}"
