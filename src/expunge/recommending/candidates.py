"""Methods at a budget: which there are to choose from, and what each can do with so much to spend."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from expunge.methods import (
    CFK,
    CT,
    EMMN,
    EUK,
    LFSSD,
    MSG,
    NPO,
    SCRUB,
    SSD,
    UNSIR,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    Extrapolate,
    FineTune,
    FisherForgetting,
    GradDiff,
    GradientAscent,
    JustInTime,
    L1Sparse,
    Method,
    NegGradPlus,
    NoiseAndDistil,
    RandomLabel,
    SalUn,
    SelectiveReset,
    SimNPO,
    Stage,
)
from expunge.methods._budget import FORWARD
from expunge.problem import Problem
from expunge.tasks import Classification
from expunge.training import Schedule, Supervised

BATCH = 64
"""Examples a step where a recipe of the user's own does not say how many it takes."""

_MOST_EPOCHS = 10.0  # over the forget set alone, of methods that read nothing else: their papers' number
_SHORT = 1.5  # passes over the retain set, below which `SelectiveReset` has no time to ask the original


@dataclass(frozen=True)
class Spending:
    """What may be spent, in examples that pass forward and backward; a pass forward alone counts as a third.

    Attributes:
        examples: The budget.
        retain: Rows of the retain set.
        forget: Rows of the forget set.
        batch_size: Of the recipe, for all methods, so that as many examples make as many steps.
        kinds: Classes of the task, where it has any, else 1.
    """

    examples: float
    retain: int
    forget: int
    batch_size: int
    kinds: int = 1

    @classmethod
    def of(cls, problem: Problem, examples: float) -> "Spending":
        """So many examples on a problem that has a forget set and a retain set."""
        recipe, task = problem.recipe, problem.task
        retain, forget = (len(cast("Sequence[object]", data)) for data in (problem.retain, problem.forget))
        batch = recipe.batch_size if isinstance(recipe, Supervised) else BATCH
        return cls(examples, retain, forget, batch, task.classes if isinstance(task, Classification) else 1)

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
class Candidate:
    """A method that can be given a budget.

    Attributes:
        kind: The method.
        make: From budget and multiple of the published rate to an instance.
        retained: Share of the retain set that it is to be given, where it cannot be told to read less.
    """

    kind: type[Method]
    make: Callable[[Spending, float], Method]
    retained: Callable[[Spending], float] = lambda _: 1.0


def _fine_tune(spending: Spending, multiple: float) -> Method:
    stage = Stage(0.01 * multiple, epochs=spending.epochs(), schedule=Schedule.ONE_CYCLE)
    return FineTune((stage,), batch_size=spending.batch_size)


def _scrub(spending: Spending, multiple: float) -> Method:
    fixed = FORWARD * (spending.retain + spending.forget)
    epochs = spending.whole(1, 1, fixed=fixed)
    return SCRUB(5e-4 * multiple, epochs=epochs, max_epochs=max(epochs - 1, 1), batch_size=spending.batch_size)


def _unsir(spending: Spending, multiple: float) -> Method:
    epochs = spending.epochs(2, fixed=40 * 16)  # the noise: 40 steps of 16 images
    return UNSIR(
        impair_learning_rate=0.004 * multiple,
        repair_learning_rate=0.002 * multiple,
        impair_epochs=epochs,
        repair_epochs=epochs,
        retain_per_class=spending.retain,
        batch_size=spending.batch_size,
    )


def _emmn(spending: Spending, multiple: float) -> Method:
    each = 25 + 30 * (spending.kinds - 1) + 10 * (2 * spending.kinds - 1)  # examples for each image of noise
    images = max(round(spending.examples / each), 1)
    return EMMN(noise_images=images, learning_rate=0.001 * multiple, batch_size=spending.batch_size)


def _bad_teacher(spending: Spending, multiple: float) -> Method:
    fixed = FORWARD * (0.3 * spending.retain + spending.forget)
    epochs = spending.epochs(0.3, 1, fixed=fixed)
    return BadTeacher(learning_rate=1e-4 * multiple, epochs=epochs, batch_size=spending.batch_size)


def _noise_and_distil(spending: Spending, multiple: float) -> Method:
    epochs = spending.epochs(fixed=FORWARD * spending.retain)
    return NoiseAndDistil(learning_rate=1e-3 * multiple, epochs=epochs, batch_size=spending.batch_size)


def _selective_reset(spending: Spending, multiple: float) -> Method:
    base = SelectiveReset.preset("short") if spending.examples < _SHORT * spending.retain else SelectiveReset()
    fixed = min(spending.forget, base.measured_on) + min(spending.retain, base.measured_on)
    fixed += FORWARD * spending.retain * (base.distilled > 0)
    return replace(
        base,
        learning_rate=base.learning_rate * multiple,
        epochs=spending.epochs(fixed=fixed),
        batch_size=spending.batch_size,
    )


def _extrapolate(spending: Spending, multiple: float) -> Method:
    base = Extrapolate.preset("classifier") if spending.kinds > 1 else Extrapolate()
    looks = FORWARD * 15 * min(500, spending.retain)  # by which how far to go is found, and statistics are measured
    return replace(
        base,
        learning_rate=base.learning_rate * multiple,
        epochs=spending.epochs(fixed=looks),
        batch_size=spending.batch_size,
    )


def _salun(spending: Spending, multiple: float) -> Method:
    epochs = spending.whole(1, 1, fixed=spending.forget)
    return SalUn(learning_rate=0.013 * multiple, epochs=epochs, batch_size=spending.batch_size)


def _msg(spending: Spending, multiple: float) -> Method:
    epochs = spending.epochs(fixed=2 * spending.forget)
    return MSG(learning_rate=0.001 * multiple, epochs=epochs, batch_size=spending.batch_size)


def _neg_grad_plus(spending: Spending, multiple: float) -> Method:
    return NegGradPlus(
        learning_rate=0.01 * multiple, epochs=spending.epochs(2), batch_size=spending.batch_size, clip_norm=1.0
    )


def _of_text(kind: type[GradDiff] | type[NPO] | type[SimNPO]) -> Candidate:
    def make(spending: Spending, multiple: float) -> Method:
        epochs = max(math.floor(min(spending.examples / (2 * spending.forget), _MOST_EPOCHS)), 1)
        return kind(learning_rate=1e-5 * multiple, epochs=epochs, batch_size=spending.batch_size)

    return Candidate(kind, make)


def _passes_of_fisher(spending: Spending) -> float:
    return min(spending.examples / (spending.kinds * spending.retain), 1.0)


CANDIDATES: Mapping[str, Candidate] = MappingProxyType(
    {
        "SelectiveReset": Candidate(SelectiveReset, _selective_reset),
        "Extrapolate": Candidate(Extrapolate, _extrapolate),
        "SCRUB": Candidate(SCRUB, _scrub),
        "SalUn": Candidate(SalUn, _salun),
        "SSD": Candidate(SSD, lambda s, m: SSD(selection=10 / m, batch_size=s.batch_size)),
        "LFSSD": Candidate(LFSSD, lambda s, m: LFSSD(selection=10 / m, batch_size=s.batch_size)),
        "BadTeacher": Candidate(BadTeacher, _bad_teacher),
        "RandomLabel": Candidate(
            RandomLabel, lambda s, m: RandomLabel(1e-4 * m, epochs=s.epochs(1, 1), batch_size=s.batch_size)
        ),
        "NegGradPlus": Candidate(NegGradPlus, _neg_grad_plus),
        "GradientAscent": Candidate(
            GradientAscent, lambda s, m: GradientAscent(1e-4 * m, epochs=s.alone(), batch_size=s.batch_size)
        ),
        "JustInTime": Candidate(
            JustInTime,
            lambda s, m: JustInTime(learning_rate=0.01 * m, epochs=min(s.alone(26), 1), batch_size=s.batch_size),
        ),
        "EUK": Candidate(EUK, lambda s, m: EUK(learning_rate=0.01 * m, epochs=s.epochs(), batch_size=s.batch_size)),
        "CFK": Candidate(CFK, lambda s, m: CFK(learning_rate=0.01 * m, epochs=s.epochs(), batch_size=s.batch_size)),
        "L1Sparse": Candidate(
            L1Sparse, lambda s, m: L1Sparse(learning_rate=0.01 * m, epochs=s.whole(), batch_size=s.batch_size)
        ),
        "FisherForgetting": Candidate(
            FisherForgetting, lambda _, m: FisherForgetting(noise=1e-6 * m), _passes_of_fisher
        ),
        "MSG": Candidate(MSG, _msg),
        "CT": Candidate(CT, lambda s, m: CT(learning_rate=0.001 * m, epochs=s.epochs(), batch_size=s.batch_size)),
        "NoiseAndDistil": Candidate(NoiseAndDistil, _noise_and_distil),
        "UNSIR": Candidate(UNSIR, _unsir),
        "BoundaryShrink": Candidate(
            BoundaryShrink,
            lambda s, m: BoundaryShrink(learning_rate=1e-5 * m, epochs=s.alone(), batch_size=s.batch_size),
        ),
        "BoundaryExpand": Candidate(
            BoundaryExpand,
            lambda s, m: BoundaryExpand(learning_rate=1e-5 * m, epochs=s.alone(), batch_size=s.batch_size),
        ),
        "EMMN": Candidate(EMMN, _emmn),
        "GradDiff": _of_text(GradDiff),
        "NPO": _of_text(NPO),
        "SimNPO": _of_text(SimNPO),
        "FineTune": Candidate(FineTune, _fine_tune),
    }
)
"""The methods that can be chosen from, by name; rates are multiples of those that each has by default."""
