"""Models whose truth is known: shams must be caught, an oracle must pass."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy import stats
from torch import nn

from digits_problem import FORGOTTEN, QUIET, SETTINGS
from expunge import (
    Evidence,
    FineTune,
    GradientAscent,
    Maturity,
    Method,
    Problem,
    References,
    Retrain,
    Run,
    Stage,
    Tier,
    Verdict,
    unlearn,
)
from expunge.data import subset

OTHER = 7

Change = Callable[[nn.Sequential], None]


@dataclass(frozen=True)
class Sham(Method):
    """A copy of the original with one change that forgets nothing."""

    needs: ClassVar = frozenset()
    tier: ClassVar = Tier.EMPIRICAL
    paper: ClassVar = "none"
    maturity: ClassVar = Maturity.EXPERIMENTAL

    change: Change

    def apply(self, problem: Problem, run: Run) -> nn.Module:
        """Change the last layer of a copy."""
        model = run.copy(problem.model)
        with torch.no_grad():
            self.change(model)
        return model.eval()


def nothing(model: nn.Sequential) -> None:
    """The untouched original."""


def bias(model: nn.Sequential) -> None:
    """The forget logit is pushed down; the features are as they were."""
    model[-1].bias[FORGOTTEN] -= 20


def mask(model: nn.Sequential) -> None:
    """The forget logit is a constant so low that it never wins."""
    model[-1].weight[FORGOTTEN] = 0
    model[-1].bias[FORGOTTEN] = -1e4


def relabelled(model: nn.Sequential) -> None:
    """The forget class and another exchange their names."""
    swapped = torch.arange(10)
    swapped[[FORGOTTEN, 5]] = torch.tensor([5, FORGOTTEN])
    model[-1].weight.copy_(model[-1].weight[swapped].clone())
    model[-1].bias.copy_(model[-1].bias[swapped].clone())


def loses_another(model: nn.Sequential) -> None:
    """A class that was to be kept is never predicted."""
    mask(model)
    model[-1].weight[OTHER] = 0
    model[-1].bias[OTHER] = -1e4


def collapsed(model: nn.Sequential) -> None:
    """One answer to everything."""
    model[-1].weight.zero_()
    model[-1].bias.zero_()


def judged(references: References, method: Method, seed: int = 0) -> Evidence:
    return references.compare(unlearn(references.problem, method, seed=seed, execution=QUIET))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (nothing, Verdict.RESIDUAL),
        (bias, Verdict.RESIDUAL),
        (mask, Verdict.RESIDUAL),
        (relabelled, Verdict.UTILITY_LOST),
        (collapsed, Verdict.UTILITY_LOST),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_sham_is_caught(references: References, change: Change, verdict: Verdict):
    evidence = judged(references, Sham(change))

    assert evidence.verdict is verdict
    assert evidence.findings


def test_a_bias_on_the_forget_logit_passes_accuracy_and_fails_the_rest(references: References):
    evidence = judged(references, Sham(bias))

    assert evidence.measure("accuracy", "forget").side == "inside"
    assert evidence.measure("accuracy", "retain").side == "inside"
    assert evidence.measure("one-shot probe", "forget").side == "above"


def test_collapse_by_gradient_ascent_is_caught(references: References):
    evidence = judged(references, GradientAscent(learning_rate=0.05, epochs=10, clip_norm=1.0))

    assert evidence.verdict is Verdict.UTILITY_LOST


def test_a_few_steps_of_fine_tuning_are_caught(references: References):
    evidence = judged(references, FineTune(stages=(Stage(1e-3, steps=5),)))

    assert evidence.verdict is Verdict.RESIDUAL


def test_one_lost_class_is_found_by_its_group(references: References):
    evidence = judged(references, Sham(loses_another))

    assert evidence.measure("accuracy", str(OTHER)).side == "below"
    assert any(finding.text.startswith(f"Accuracy ({OTHER})") for finding in evidence.findings)
    assert evidence.verdict is Verdict.UTILITY_LOST


def test_a_holdout_of_the_forgotten_kind_alone_says_nothing_of_utility(problem: Problem):
    labels = problem.task.labels_of(problem.holdout)
    kind = dataclasses.replace(problem, holdout=subset(problem.holdout, (labels == FORGOTTEN).nonzero().flatten()))
    references = References.prepare(kind, 3, seed=1, settings=SETTINGS, execution=QUIET)

    evidence = judged(references, Sham(nothing))

    on_holdout = [
        measure for measure in evidence.measures if measure.on.startswith("holdout") and measure.aspect.judged
    ]
    assert [(measure.on, measure.aspect) for measure in on_holdout] == [("holdout, forgotten kind", "forgetting")]
    assert on_holdout[0].side == "above"


def test_oracles_that_are_no_reference_pass(references: References):
    """At most one in twenty may show a deviation; with ten references no measure is left undecided."""
    verdicts = [judged(references, Retrain(), seed=seed).verdict for seed in range(100, 120)]

    alarms = sum(verdict not in (Verdict.INDISTINGUISHABLE, Verdict.INCONCLUSIVE) for verdict in verdicts)
    assert stats.binomtest(alarms, len(verdicts), 0.05, alternative="greater").pvalue > 0.01, verdicts
    assert verdicts.count(Verdict.INDISTINGUISHABLE) >= 18, verdicts
