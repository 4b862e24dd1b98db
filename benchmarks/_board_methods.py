"""Every method for classifiers at a budget and at a multiple of its published rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import expunge.methods
from _board_controls import BiasSham, FromScratch, RandomReset
from _board_data import CLASS, MEMORISED, PERSON, RANDOM, Request
from expunge import (
    CFK,
    CT,
    EMMN,
    EUK,
    LFSSD,
    MSG,
    SCRUB,
    SSD,
    UNSIR,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    FineTune,
    FisherForgetting,
    GradientAscent,
    JustInTime,
    L1Sparse,
    Method,
    NegGradPlus,
    NoiseAndDistil,
    RandomLabel,
    SalUn,
    Schedule,
    Stage,
)

KINDS = (CLASS, RANDOM, MEMORISED, PERSON)
WHOLE = (CLASS, PERSON)
_MOST_EPOCHS = 10.0  # over the forget set alone, of methods that read nothing else: their papers' number
_FORWARD = 1 / 3  # of the cost of a pass forward and backward

ABSENT = {
    "Amnesiac": "undoes recorded steps; at batches of 64 a request of 2 % is in most steps, so all training would go",
    "GradientReversal": "needs gradients of single examples recorded at training; see its own benchmarks",
    "SISA": "needs an ensemble of shards, which is another model",
    "NewtonRemoval": "certifies heads, not networks; see [guarantees](guarantees.md)",
    "NoisyFineTune": "refuses models with BatchNorm statistics",
    "ExactRidge, ExactNaiveBayes, ExactDiscriminant": "are for models in closed form",
}
"""Methods for classifiers that the leaderboard leaves out, and why."""


@dataclass(frozen=True)
class Spending:
    """What may be spent, in examples that pass forward and backward; a pass forward alone counts as a third.

    Attributes:
        examples: The budget.
        retain: Rows of the retain set.
        forget: Rows of the forget set.
        batch_size: Of the recipe, for all methods: at these sizes the published ones would leave a handful of steps.
        classes: Classes of the task.
    """

    examples: float
    retain: int
    forget: int
    batch_size: int
    classes: int

    def epochs(self, retain: float = 1.0, forget: float = 0.0, *, fixed: float = 0.0) -> float:
        """Epochs that the budget pays for.

        Args:
            retain: Passes over the retain set in an epoch.
            forget: Passes over the forget set in an epoch.
            fixed: Examples that are spent before, whatever the epochs.
        """
        return max(self.examples - fixed, 0.1 * self.examples) / (retain * self.retain + forget * self.forget)

    def whole(self, retain: float = 1.0, forget: float = 0.0, *, fixed: float = 0.0) -> int:
        """The same for methods that count whole epochs; one at least, also where that is over the budget."""
        return max(math.floor(self.epochs(retain, forget, fixed=fixed) + 1e-9), 1)

    def alone(self, passes: float = 1.0) -> float:
        """Epochs over the forget set alone, of so many passes each."""
        return min(self.examples / (passes * self.forget), _MOST_EPOCHS)


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


def _fine_tune(spending: Spending, multiple: float) -> Method:
    stage = Stage(0.01 * multiple, epochs=spending.epochs(), schedule=Schedule.ONE_CYCLE)
    return FineTune((stage,), batch_size=spending.batch_size)


def _scrub(spending: Spending, multiple: float) -> Method:
    fixed = _FORWARD * (spending.retain + spending.forget)
    epochs = spending.whole(1, 1, fixed=fixed)
    return SCRUB(5e-4 * multiple, epochs=epochs, max_epochs=max(epochs - 1, 1), batch_size=spending.batch_size)


def _unsir(spending: Spending, multiple: float) -> Method:
    noise = 40 * 16
    epochs = spending.epochs(2, fixed=noise)
    return UNSIR(
        impair_learning_rate=0.004 * multiple, repair_learning_rate=0.002 * multiple, impair_epochs=epochs,
        repair_epochs=epochs, retain_per_class=spending.retain, batch_size=spending.batch_size,
    )  # fmt: skip


def _emmn(spending: Spending, multiple: float) -> Method:
    each = 25 + 30 * (spending.classes - 1) + 10 * (2 * spending.classes - 1)  # examples for each image of noise
    images = max(round(spending.examples / each), 1)
    return EMMN(noise_images=images, learning_rate=0.001 * multiple, batch_size=spending.batch_size)


def _bad_teacher(spending: Spending, multiple: float) -> Method:
    fixed = _FORWARD * (0.3 * spending.retain + spending.forget)
    return BadTeacher(
        learning_rate=1e-4 * multiple, epochs=spending.epochs(0.3, 1, fixed=fixed), batch_size=spending.batch_size
    )


def _noise_and_distil(spending: Spending, multiple: float) -> Method:
    epochs = spending.epochs(fixed=_FORWARD * spending.retain)
    return NoiseAndDistil(learning_rate=1e-3 * multiple, epochs=epochs, batch_size=spending.batch_size)


def _selective_reset(spending: Spending, multiple: float) -> Method:
    reset = _ours("SelectiveReset")
    fixed = _FORWARD * spending.retain + 2 * spending.forget
    return reset(learning_rate=0.1 * multiple / 4, epochs=spending.epochs(fixed=fixed), batch_size=spending.batch_size)


def _extrapolate(spending: Spending, multiple: float) -> Method:
    return _ours("Extrapolate")(learning_rate=0.01 * multiple, epochs=spending.epochs(), batch_size=spending.batch_size)


def _ours(name: str) -> Any:
    return getattr(expunge.methods, name)


def _passes_of_fisher(spending: Spending) -> float:
    return min(spending.examples / (spending.classes * spending.retain), 1.0)


ENTRIES: dict[str, Entry] = {
    "SelectiveReset": Entry(_selective_reset),
    "Extrapolate": Entry(_extrapolate),
    "SCRUB": Entry(_scrub),
    "SalUn": Entry(
        lambda s, m: SalUn(learning_rate=0.013 * m, epochs=s.whole(1, 1, fixed=s.forget), batch_size=s.batch_size)
    ),
    "SSD": Entry(lambda s, m: SSD(selection=10 / m, batch_size=s.batch_size)),
    "LFSSD": Entry(lambda s, m: LFSSD(selection=10 / m, batch_size=s.batch_size)),
    "BadTeacher": Entry(_bad_teacher),
    "RandomLabel": Entry(lambda s, m: RandomLabel(1e-4 * m, epochs=s.epochs(1, 1), batch_size=s.batch_size)),
    "NegGradPlus": Entry(
        lambda s, m: NegGradPlus(learning_rate=0.01 * m, epochs=s.epochs(2), batch_size=s.batch_size, clip_norm=1.0)
    ),
    "GradientAscent": Entry(lambda s, m: GradientAscent(1e-4 * m, epochs=s.alone(), batch_size=s.batch_size)),
    "JustInTime": Entry(
        lambda s, m: JustInTime(learning_rate=0.01 * m, epochs=min(s.alone(26), 1), batch_size=s.batch_size)
    ),
    "EUK": Entry(lambda s, m: EUK(learning_rate=0.01 * m, epochs=s.epochs(), batch_size=s.batch_size)),
    "CFK": Entry(lambda s, m: CFK(learning_rate=0.01 * m, epochs=s.epochs(), batch_size=s.batch_size)),
    "L1Sparse": Entry(lambda s, m: L1Sparse(learning_rate=0.01 * m, epochs=s.whole(), batch_size=s.batch_size)),
    "FisherForgetting": Entry(lambda s, m: FisherForgetting(noise=1e-6 * m), retained=_passes_of_fisher),
    "MSG": Entry(
        lambda s, m: MSG(learning_rate=0.001 * m, epochs=s.epochs(fixed=2 * s.forget), batch_size=s.batch_size)
    ),
    "CT": Entry(lambda s, m: CT(learning_rate=0.001 * m, epochs=s.epochs(), batch_size=s.batch_size)),
    "NoiseAndDistil": Entry(_noise_and_distil),
    "UNSIR": Entry(_unsir, WHOLE),
    "BoundaryShrink": Entry(
        lambda s, m: BoundaryShrink(learning_rate=1e-5 * m, epochs=s.alone(), batch_size=s.batch_size), WHOLE
    ),
    "BoundaryExpand": Entry(
        lambda s, m: BoundaryExpand(learning_rate=1e-5 * m, epochs=s.alone(), batch_size=s.batch_size), WHOLE
    ),
    "EMMN": Entry(_emmn, WHOLE),
    "retain-only fine-tune": Entry(_fine_tune, control=True),
    "random reset": Entry(
        lambda s, m: RandomReset(learning_rate=0.01 * m, epochs=s.epochs(), batch_size=s.batch_size), control=True
    ),
    "from scratch": Entry(lambda s, m: FromScratch(0.1 * m / 4, epochs=s.epochs()), control=True),
    "bias sham": Entry(lambda s, m: BiasSham(), WHOLE, control=True, tuned=False),
}


def entries(kind: str) -> dict[str, Entry]:
    """The rows for a kind of request; ours are left out where the library has not got them."""
    ours = {"SelectiveReset", "Extrapolate"}
    return {
        name: entry
        for name, entry in ENTRIES.items()
        if kind in entry.kinds and (name not in ours or hasattr(expunge.methods, name))
    }


def key(request: Request, name: str, budget: float) -> str:
    """How cells of a method at a budget begin."""
    return f"{request.title} · {name} · {budget:.0%}"
