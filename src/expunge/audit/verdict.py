"""What the evidence allows one to say; `docs/verdict.md` states the rule in full."""

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.audit.evidence import Aspect, Measure, Side, Verdict

FEWEST_ORACLES = 3


@dataclass(frozen=True)
class Finding:
    """One deviation from retraining, and what it counts as."""

    verdict: Verdict
    text: str


def judge(measures: Sequence[Measure], oracles: int) -> tuple[Verdict, str, list[str]]:
    """The verdict, a sentence for it, and every finding in words.

    With fewer than three oracles nothing can be said. Otherwise the gravest finding decides: utility lost, residual
    influence, over-forgotten. Without a finding the verdict is `inconclusive` where a measure is undecided because
    the oracles differ too much among themselves, and `indistinguishable` otherwise.
    """
    closer = _closer_to_original(measures)
    findings = [found for measure in measures if (found := _finding(measure, closer_to_original=closer))]
    words = [found.text for found in findings]
    undecided = [measure for measure in measures if measure.side is Side.UNDECIDED]
    words += [f"{_title(measure)}: the oracles differ too much among themselves to tell." for measure in undecided]
    if oracles < FEWEST_ORACLES:
        return (
            Verdict.INCONCLUSIVE,
            f"With {oracles} oracle{'s' if oracles != 1 else ''} nothing can be said; use at least {FEWEST_ORACLES}.",
            words,
        )
    for verdict, sentence in _SENTENCES.items():
        if any(found.verdict is verdict for found in findings):
            return verdict, sentence, words
    if undecided:
        return (
            Verdict.INCONCLUSIVE,
            "No difference from retraining was found, but the oracles differ too much among themselves to rule one "
            "out; use more of them.",
            words,
        )
    return (
        Verdict.INDISTINGUISHABLE,
        "On every measure taken the unlearned model lies where a retrained model would.",
        words,
    )


_SENTENCES = {
    Verdict.UTILITY_LOST: "The unlearned model is worse on data to be kept than retraining would have made it.",
    Verdict.RESIDUAL: "The forget set still has an influence that retraining would have removed.",
    Verdict.OVER_FORGOTTEN: "The forget set was pushed further away than retraining would have, which itself tells "
    "that something was removed.",
}


def _closer_to_original(measures: Sequence[Measure]) -> bool:
    for measure in measures:
        if measure.aspect is Aspect.CLOSENESS:
            return measure.unlearned.value < sum(measure.oracles) / max(len(measure.oracles), 1)
    return False


def _finding(measure: Measure, *, closer_to_original: bool) -> Finding | None:
    toward = Verdict.RESIDUAL if closer_to_original else Verdict.OVER_FORGOTTEN
    verdict = {
        (Aspect.FORGETTING, Side.ABOVE): Verdict.RESIDUAL,
        (Aspect.FORGETTING, Side.BELOW): Verdict.OVER_FORGOTTEN,
        (Aspect.UTILITY, Side.BELOW): Verdict.UTILITY_LOST,
        (Aspect.DISTANCE, Side.ABOVE): toward,
        (Aspect.CLOSENESS, Side.BELOW): Verdict.RESIDUAL,
        (Aspect.CLOSENESS, Side.ABOVE): Verdict.OVER_FORGOTTEN,
    }.get((measure.aspect, measure.side))
    if verdict is None:
        return None
    return Finding(
        verdict,
        f"{_title(measure)} is {measure.unlearned.value:.3f}, {measure.side.value} the oracles' range of "
        f"{measure.band.low:.3f} to {measure.band.high:.3f} (margin {measure.margin:.3f}): {verdict.value}.",
    )


def _title(measure: Measure) -> str:
    name = measure.name[:1].upper() + measure.name[1:]
    return f"{name} ({measure.on})"
