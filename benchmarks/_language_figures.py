"""What is measured of a language model in the table of methods: text measures, distances, and the audit's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from torch import nn

from _language import QUIET, Corpus, oracle_of, problem_of, some
from expunge import AuditSettings, Evidence, References, Relearning, Unlearned
from expunge.audit.text import Floats, TokenScores
from expunge.audit.tofu import TruthRatio, forget_quality, model_utility, truth_ratios, utility_of
from expunge.training import Run

ORACLE_SEEDS = (100, 101, 102, 103, 104, 105)
"""Apart from the originals' seeds; all originals of a benchmark are held against all of them."""

DISTANCE, DISTANCE_RETAIN = "loss distance, forget", "loss distance, retain"
RELEARNING, MEMBERSHIP = "relearning", "membership AUC"
QUALITY = "forget quality"
_MEASURED = 200
AUDIT = AuditSettings(
    # A few examples learned again, the rest looked at: the quick look of an audit.
    relearning=Relearning(
        forget_examples=10, retain_examples=10, steps=(0, 2, 5, 10), learning_rate=5e-4, batch_size=20, measured_on=60
    ),
    examples=_MEASURED,
    bits=(),
    neighbours=0,
)


@dataclass(frozen=True)
class Seen:
    """What one model says.

    Attributes:
        losses: Of each example in nats, on the forget set and on measured retained rows: (examples,) each.
        ratios: Geometric truth ratios of the forget set: (examples,).
        figures: Everything that is a number of this model alone.
    """

    losses: Mapping[str, Floats]
    ratios: Floats
    figures: dict[str, float]

    @classmethod
    def of(cls, corpus: Corpus, model: nn.Module, *, brief: bool = False) -> "Seen":
        """Look at a model; in brief, at its losses alone."""
        run = Run(corpus.task, 0, QUIET)
        forget = TokenScores.of(run, model, corpus.forget)
        retain = TokenScores.of(run, model, some(corpus.retain, _MEASURED, "measured"))
        losses = {"forget": forget.nll, "retain": retain.nll}
        if brief:
            return cls(losses, np.empty(0), {})
        ratios = truth_ratios(run, model, corpus.asked, TruthRatio.GEOMETRIC)
        figures = {
            "probability, forget": float(forget.probability.mean()),
            "truth ratio, forget": float(np.median(ratios)),
            "extraction strength, forget": float(forget.extraction_strength.mean()),
            "exact memorisation, forget": float(forget.exact_memorisation.mean()),
            "loss, forget": float(forget.nll.mean()),
            "loss, retain": float(retain.nll.mean()),
        }
        for part, rows in corpus.watched.items():
            figures[f"probability, {part}"] = float(TokenScores.of(run, model, rows).probability.mean())
        if corpus.utility:
            parts = {
                part: utility_of(run, model, rows, options=part != "retain") for part, rows in corpus.utility.items()
            }
            figures["model utility"] = model_utility(parts)
        return cls(losses, ratios, figures)

    def distances(self, oracles: Sequence["Seen"]) -> dict[str, float]:
        """Mean distance of an example's loss from the oracles' mean, in nats."""
        return {
            name: float(np.abs(self.losses[part] - np.mean([each.losses[part] for each in oracles], 0)).mean())
            for name, part in ((DISTANCE, "forget"), (DISTANCE_RETAIN, "retain"))
        }

    def beside(self, oracles: Sequence["Seen"]) -> dict[str, float]:
        """Both distances, and the median p-value of forget quality."""
        return self.distances(oracles) | {
            QUALITY: float(np.median([forget_quality(self.ratios, each.ratios) for each in oracles]))
        }


@cache
def oracles_seen(corpus: Corpus, seeds: tuple[int, ...] = ORACLE_SEEDS, *, brief: bool = False) -> tuple[Seen, ...]:
    """What the oracles of these seeds say."""
    return tuple(Seen.of(corpus, oracle_of(corpus, seed).model, brief=brief) for seed in seeds)


def figures_of(corpus: Corpus, model: nn.Module) -> dict[str, float]:
    """All text measures of a model beside the oracles."""
    seen = Seen.of(corpus, model)
    return seen.figures | seen.beside(oracles_seen(corpus))


def oracle_figures(corpus: Corpus) -> dict[str, list[float]]:
    """The same of each oracle, beside the others."""
    everyone = oracles_seen(corpus)
    rows = [seen.figures | seen.beside([each for each in everyone if each is not seen]) for seen in everyone]
    return {name: [row[name] for row in rows] for name in rows[0]}


@cache
def references(corpus: Corpus, seed: int) -> References:
    """The original of this seed beside the oracles, which are measured once for all seeds."""
    problem = problem_of(corpus, seed)
    if seed:
        first = references(corpus, 0)
        return replace(first, problem=problem, original=first.sitting.portray(problem.model))
    oracles = [oracle_of(corpus, each).model for each in ORACLE_SEEDS]
    return References.prepare(problem, oracles, settings=AUDIT, execution=QUIET)


def audited(corpus: Corpus, seed: int, unlearned: Unlearned) -> dict[str, Any]:
    """The audit's figures that the table shows, each of the unlearned model, the original and every oracle."""
    evidence = references(corpus, seed).compare(unlearned)
    (attack,) = (each for each in evidence.membership if each.attack == "membership (loss)")
    return {
        **_measure(evidence, "relearning, mean", RELEARNING),
        **_measure(evidence, "divergence from the oracles", "divergence"),
        MEMBERSHIP: attack.unlearned.auc.value,
        f"{MEMBERSHIP}, others": {
            "original": attack.original.auc,
            "oracles": [each.auc for each in attack.oracles],
        },
        "verdict": evidence.verdict.value,
    }


def _measure(evidence: Evidence, measured: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in evidence.measures if each.name == measured and each.on == "forget")
    original = None if found.original is None else found.original.value
    return {name: found.unlearned.value, f"{name}, others": {"original": original, "oracles": found.oracles}}
