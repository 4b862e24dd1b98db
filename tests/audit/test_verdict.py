"""The rule of `docs/verdict.md`, row by row."""

import pytest

from expunge import Verdict
from expunge.audit.evidence import Aspect, Estimate, Interval, Measure, Side
from expunge.audit.verdict import judge


def measure(aspect: Aspect, side: Side, *, value: float = 0.5, oracles: float = 0.5) -> Measure:
    estimate = Estimate(value=value, interval=Interval(low=value, high=value))
    return Measure(
        name="figure",
        on="forget",
        aspect=aspect,
        unlearned=estimate,
        original=estimate,
        oracles=[oracles] * 3,
        band=Interval(low=0.4, high=0.6),
        margin=0.02,
        side=side,
    )


@pytest.mark.parametrize(
    ("aspect", "side", "verdict"),
    [
        (Aspect.FORGETTING, Side.ABOVE, Verdict.RESIDUAL),
        (Aspect.FORGETTING, Side.BELOW, Verdict.OVER_FORGOTTEN),
        (Aspect.CLOSENESS, Side.BELOW, Verdict.RESIDUAL),
        (Aspect.CLOSENESS, Side.ABOVE, Verdict.OVER_FORGOTTEN),
        (Aspect.UTILITY, Side.BELOW, Verdict.UTILITY_LOST),
        (Aspect.UTILITY, Side.ABOVE, Verdict.INDISTINGUISHABLE),
        (Aspect.DISTANCE, Side.BELOW, Verdict.INDISTINGUISHABLE),
        (Aspect.SUMMARY, Side.BELOW, Verdict.INDISTINGUISHABLE),
        (Aspect.FORGETTING, Side.INSIDE, Verdict.INDISTINGUISHABLE),
        (Aspect.FORGETTING, Side.UNDECIDED, Verdict.INCONCLUSIVE),
    ],
)
def test_what_a_deviation_means(aspect: Aspect, side: Side, verdict: Verdict):
    found, sentence, findings = judge([measure(aspect, side)], oracles=3)

    assert found is verdict
    assert sentence
    assert bool(findings) == (verdict is not Verdict.INDISTINGUISHABLE)


@pytest.mark.parametrize(("distance", "verdict"), [(0.1, Verdict.RESIDUAL), (0.9, Verdict.OVER_FORGOTTEN)])
def test_a_distance_from_the_oracles_is_told_apart_by_the_distance_from_the_original(distance: float, verdict: Verdict):
    closeness = measure(Aspect.CLOSENESS, Side.INSIDE, value=distance)

    assert judge([measure(Aspect.DISTANCE, Side.ABOVE), closeness], oracles=3)[0] is verdict


def test_the_gravest_finding_decides_and_all_are_listed():
    verdict, _, findings = judge(
        [
            measure(Aspect.FORGETTING, Side.BELOW),
            measure(Aspect.UTILITY, Side.BELOW),
            measure(Aspect.CLOSENESS, Side.BELOW),
        ],
        oracles=3,
    )

    assert verdict is Verdict.UTILITY_LOST
    assert len(findings) == 3


def test_a_finding_outweighs_what_is_undecided():
    measures = [measure(Aspect.FORGETTING, Side.UNDECIDED), measure(Aspect.FORGETTING, Side.ABOVE)]

    assert judge(measures, oracles=3)[0] is Verdict.RESIDUAL


def test_two_oracles_are_too_few_for_a_verdict():
    verdict, sentence, _ = judge([measure(Aspect.FORGETTING, Side.ABOVE)], oracles=2)

    assert verdict is Verdict.INCONCLUSIVE
    assert "at least 3" in sentence
