"""The rule of `docs/verdict.md`, row by row."""

import pytest

from expunge import Verdict
from expunge.audit.evidence import Aspect, Measure, Side
from expunge.audit.verdict import judge
from measures import measure


def settled(
    aspect: Aspect, side: Side, *, value: float = 0.5, original: float = 0.9, needed: int | None = None
) -> Measure:
    """A figure that was found to lie on this side of oracles of 0.5 each."""
    return measure(value, [0.5] * 3, aspect=aspect, side=side, original=original, margin=0.02, needed=needed)


@pytest.mark.parametrize(
    ("aspect", "side", "verdict"),
    [
        (Aspect.FORGETTING, Side.ABOVE, Verdict.RESIDUAL),
        (Aspect.FORGETTING, Side.BELOW, Verdict.OVER_FORGOTTEN),
        (Aspect.KNOWLEDGE, Side.ABOVE, Verdict.RESIDUAL),
        (Aspect.KNOWLEDGE, Side.BELOW, Verdict.OVER_FORGOTTEN),
        (Aspect.CLOSENESS, Side.BELOW, Verdict.INDISTINGUISHABLE),
        (Aspect.UTILITY, Side.ABOVE, Verdict.INDISTINGUISHABLE),
        (Aspect.DISTANCE, Side.BELOW, Verdict.INDISTINGUISHABLE),
        (Aspect.SUMMARY, Side.BELOW, Verdict.INDISTINGUISHABLE),
        (Aspect.FORGETTING, Side.INSIDE, Verdict.INDISTINGUISHABLE),
        (Aspect.FORGETTING, Side.UNDECIDED, Verdict.INCONCLUSIVE),
    ],
)
def test_what_a_deviation_means(aspect: Aspect, side: Side, verdict: Verdict):
    found, sentence, findings = judge([settled(aspect, side)], [], oracles=3)

    assert found is verdict
    assert sentence
    assert bool(findings) == (verdict is not Verdict.INDISTINGUISHABLE)


@pytest.mark.parametrize(("original", "verdict"), [(0.9, Verdict.UTILITY_LOST), (0.5, Verdict.RESIDUAL)])
def test_utility_that_retraining_would_have_gained_is_not_lost(original: float, verdict: Verdict):
    low = settled(Aspect.UTILITY, Side.BELOW, original=original)

    assert judge([low], [], oracles=3)[0] is verdict


@pytest.mark.parametrize(("distance", "verdict"), [(0.1, Verdict.RESIDUAL), (0.9, Verdict.OVER_FORGOTTEN)])
def test_a_distance_from_the_oracles_is_told_apart_by_the_distance_from_the_original(distance: float, verdict: Verdict):
    closeness = settled(Aspect.CLOSENESS, Side.INSIDE, value=distance)

    assert judge([settled(Aspect.DISTANCE, Side.ABOVE), closeness], [], oracles=3)[0] is verdict


def test_the_gravest_finding_decides_and_all_are_listed():
    verdict, _, findings = judge(
        [
            settled(Aspect.FORGETTING, Side.BELOW),
            settled(Aspect.UTILITY, Side.BELOW),
            settled(Aspect.FORGETTING, Side.ABOVE),
        ],
        [],
        oracles=3,
    )

    assert verdict is Verdict.UTILITY_LOST
    assert [finding.verdict for finding in findings] == [
        Verdict.OVER_FORGOTTEN,
        Verdict.UTILITY_LOST,
        Verdict.RESIDUAL,
    ]


def test_a_deviation_of_one_group_decides_where_the_whole_set_shows_nothing():
    group = settled(Aspect.UTILITY, Side.BELOW)

    verdict, _, findings = judge([settled(Aspect.UTILITY, Side.INSIDE)], [group], oracles=5)

    assert verdict is Verdict.UTILITY_LOST
    assert [finding.verdict for finding in findings] == [Verdict.UTILITY_LOST]


def test_an_undecided_group_leaves_the_verdict_to_the_whole_sets():
    group = settled(Aspect.UTILITY, Side.UNDECIDED)

    assert judge([settled(Aspect.UTILITY, Side.INSIDE)], [group], oracles=5)[0] is Verdict.INDISTINGUISHABLE


@pytest.mark.parametrize(("needed", "words"), [((8, 12), "use 12 oracles"), ((8, None), "to be equivalent.")])
def test_an_inconclusive_verdict_says_how_many_oracles_would_do(needed: tuple[int | None, ...], words: str):
    measures = [settled(Aspect.UTILITY, Side.UNDECIDED, needed=count) for count in needed]

    verdict, sentence, findings = judge(measures, [], oracles=5)

    assert verdict is Verdict.INCONCLUSIVE
    assert sentence.endswith((words, f"{words}."))
    assert all(finding.verdict is Verdict.INCONCLUSIVE for finding in findings)


@pytest.mark.parametrize(
    ("answers", "knowledge", "suppressed"),
    [(Side.INSIDE, Side.ABOVE, True), (Side.ABOVE, Side.ABOVE, False), (Side.ABOVE, Side.INSIDE, False)],
)
def test_suppression_is_told_from_influence_on_the_answers(answers: Side, knowledge: Side, suppressed: bool):
    _, sentence, _ = judge([settled(Aspect.FORGETTING, answers), settled(Aspect.KNOWLEDGE, knowledge)], [], oracles=3)

    assert ("suppression" in sentence) is suppressed


def test_a_finding_outweighs_what_is_undecided():
    measures = [settled(Aspect.FORGETTING, Side.UNDECIDED), settled(Aspect.FORGETTING, Side.ABOVE)]

    assert judge(measures, [], oracles=3)[0] is Verdict.RESIDUAL


def test_two_oracles_are_too_few_for_a_verdict():
    verdict, sentence, _ = judge([settled(Aspect.FORGETTING, Side.ABOVE)], [], oracles=2)

    assert verdict is Verdict.INCONCLUSIVE
    assert "at least 3" in sentence


def test_a_reservation_forbids_to_call_a_model_indistinguishable_and_nothing_else():
    inside = settled(Aspect.FORGETTING, Side.INSIDE)
    above = settled(Aspect.FORGETTING, Side.ABOVE)

    verdict, sentence, _ = judge([inside], [], 10, ["Most oracles are worse."])
    assert verdict is Verdict.INCONCLUSIVE
    assert sentence == "No difference was found. Most oracles are worse."
    assert judge([above], [], 10, ["Most oracles are worse."])[0] is Verdict.RESIDUAL


def test_unusable_oracles_convict_nobody():
    above = settled(Aspect.FORGETTING, Side.ABOVE)

    verdict, sentence, findings = judge([above], [], 10, unusable="The oracles are useless.")

    assert (verdict, sentence) == (Verdict.INCONCLUSIVE, "The oracles are useless.")
    assert [finding.verdict for finding in findings] == [Verdict.INCONCLUSIVE]


@pytest.mark.parametrize(
    ("answered", "known", "words"),
    [
        (Side.INSIDE, Side.ABOVE, "suppression: it answers as a retrained model does"),
        (Side.BELOW, Side.ABOVE, "suppression: the answers were pushed away"),
        (Side.BELOW, Side.INSIDE, "removal"),
        (Side.UNDECIDED, Side.ABOVE, ""),
        (Side.ABOVE, Side.ABOVE, ""),
    ],
)
def test_the_sentence_says_suppression_or_removal_where_the_measures_do(answered: Side, known: Side, words: str):
    measures = [settled(Aspect.FORGETTING, answered), settled(Aspect.KNOWLEDGE, known)]
    lost = settled(Aspect.UTILITY, Side.BELOW, value=0.1)

    sentence = judge([*measures, lost], [], 10)[1]

    assert (f"It looks like {words}" in sentence) if words else ("looks like" not in sentence)


def test_undecided_groups_are_not_called_alike():
    inside, group = settled(Aspect.FORGETTING, Side.INSIDE), settled(Aspect.UTILITY, Side.UNDECIDED)

    assert judge([inside], [group], 10)[1].endswith("1 of 1 groups could not be decided about.")
