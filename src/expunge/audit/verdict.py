"""What the evidence allows one to say; `docs/verdict.md` states the rule in full."""

from collections.abc import Sequence

from expunge.audit.decision import FEWEST_ORACLES
from expunge.audit.evidence import Aspect, Finding, Measure, Side, Verdict


def judge(
    measures: Sequence[Measure],
    groups: Sequence[Measure],
    oracles: int,
    reservations: Sequence[str] = (),
    unusable: str = "",
) -> tuple[Verdict, str, list[Finding]]:
    """The verdict, a sentence for it, and every finding.

    With fewer than three oracles, or with oracles that are `unusable`, nothing can be said. Otherwise the gravest
    finding decides: utility lost, residual influence, over-forgotten. Without a finding the verdict is `inconclusive`
    where there is a reservation or a measure on a whole set is undecided, and `indistinguishable` otherwise.
    """
    closer = _closer_to_original(measures)
    found = (_finding(measure, closer_to_original=closer) for measure in (*measures, *groups))
    findings = [finding for finding in found if finding is not None]
    undecided = [measure for measure in measures if measure.side is Side.UNDECIDED and measure.aspect.judged]
    doubts = [Finding(verdict=Verdict.INCONCLUSIVE, text=_doubt(measure)) for measure in undecided]
    if oracles < FEWEST_ORACLES:
        few = f"With {oracles} oracle{'s' if oracles != 1 else ''} nothing can be said; use at least {FEWEST_ORACLES}."
        return Verdict.INCONCLUSIVE, few, doubts
    if unusable:
        seen = [Finding(verdict=Verdict.INCONCLUSIVE, text=finding.text) for finding in findings]
        return Verdict.INCONCLUSIVE, unusable, seen + doubts
    for verdict, sentence in _SENTENCES.items():
        if any(finding.verdict is verdict for finding in findings):
            return verdict, " ".join(filter(None, (sentence, _looks_like(measures)))), findings + doubts
    if reservations:
        return Verdict.INCONCLUSIVE, " ".join(["No difference was found.", *reservations]), doubts
    if undecided:
        return Verdict.INCONCLUSIVE, _inconclusive(undecided), doubts
    sentence = "On every measure of whole sets the unlearned model lies where a retrained model would."
    open_groups = sum(group.side is Side.UNDECIDED for group in groups)
    if open_groups:
        sentence += f" {open_groups} of {len(groups)} groups could not be decided about."
    return Verdict.INDISTINGUISHABLE, sentence, findings


_SENTENCES = {
    Verdict.UTILITY_LOST: "The unlearned model is worse on data to be kept than retraining would have made it.",
    Verdict.RESIDUAL: "The forget set still has an influence that retraining would have removed.",
    Verdict.OVER_FORGOTTEN: "The forget set was pushed further away than retraining would have, which itself tells "
    "that something was removed.",
}


def _looks_like(measures: Sequence[Measure]) -> str:
    """Suppression or removal, where the measures tell: what a model answers, beside what it still knows."""
    answered = {measure.side for measure in measures if measure.aspect in (Aspect.FORGETTING, Aspect.DISTANCE)}
    known = {measure.side for measure in measures if measure.aspect is Aspect.KNOWLEDGE}
    if Side.ABOVE in known and answered == {Side.INSIDE}:
        return "It looks like suppression: it answers as a retrained model does, but what was learned is still there."
    if Side.ABOVE in known and Side.BELOW in answered and Side.ABOVE not in answered:
        return "It looks like suppression: the answers were pushed away, but what was learned is still there."
    if known == {Side.INSIDE}:
        return "It looks like removal: what the model still knows is what a retrained model knows."
    return ""


def _closer_to_original(measures: Sequence[Measure]) -> bool:
    for measure in measures:
        if measure.aspect is Aspect.CLOSENESS:
            return measure.unlearned.value < sum(measure.oracles) / max(len(measure.oracles), 1)
    return False


def _finding(measure: Measure, *, closer_to_original: bool) -> Finding | None:
    toward = Verdict.RESIDUAL if closer_to_original else Verdict.OVER_FORGOTTEN
    lost = Verdict.UTILITY_LOST if _worse_than_original(measure) else Verdict.RESIDUAL
    verdict = {
        (Aspect.FORGETTING, Side.ABOVE): Verdict.RESIDUAL,
        (Aspect.FORGETTING, Side.BELOW): Verdict.OVER_FORGOTTEN,
        (Aspect.KNOWLEDGE, Side.ABOVE): Verdict.RESIDUAL,
        (Aspect.KNOWLEDGE, Side.BELOW): Verdict.OVER_FORGOTTEN,
        (Aspect.UTILITY, Side.BELOW): lost,
        (Aspect.DISTANCE, Side.ABOVE): toward,
    }.get((measure.aspect, measure.side))
    if verdict is None:
        return None
    text = (
        f"{_title(measure)} is {measure.unlearned.value:.3f}, {measure.side.value} what retraining gives: "
        f"{measure.band.low:.3f} to {measure.band.high:.3f}, margin {measure.margin:.3f} "
        f"(corrected p = {measure.corrected_p_value:.2g}): {verdict.value}."
    )
    return Finding(verdict=verdict, text=text)


def _worse_than_original(measure: Measure) -> bool:
    """Whether utility was lost, and not just never gained: retraining may help where the forget set did harm."""
    return measure.original is None or measure.unlearned.value < measure.original.value - measure.margin


def _doubt(measure: Measure) -> str:
    text = (
        f"{_title(measure)} is {measure.unlearned.value:.3f}, retraining gives {measure.band.low:.3f} to "
        f"{measure.band.high:.3f}: neither a difference nor equivalence within {measure.limit or 0:.3f} is shown"
    )
    if measure.oracles_needed is None:
        return f"{text}; more oracles would not decide it, a larger forget set or holdout may."
    return f"{text}; {measure.oracles_needed} oracles would probably decide it, if they scatter as these do."


def _inconclusive(undecided: Sequence[Measure]) -> str:
    sentence = "No difference from retraining was found, but not every measure could be shown to be equivalent"
    needed = [measure.oracles_needed for measure in undecided]
    if None in needed:
        return f"{sentence}."
    return f"{sentence}; use {max(count for count in needed if count is not None)} oracles."


def _title(measure: Measure) -> str:
    name = measure.name[:1].upper() + measure.name[1:]
    return f"{name} ({measure.on})"
