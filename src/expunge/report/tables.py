"""The tables of the page, as rows of text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from expunge.audit import Fairness, Reconstruction
from expunge.audit.evidence import Curve, Evidence, Measure, Membership
from expunge.audit.fairness import Change
from expunge.report import words
from expunge.report.comparisons import shown_groups
from expunge.report.restorations import COLUMNS, restoration_note, restoration_rows
from expunge.unlearning import Choice, Record


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first cell of a row names it."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    code: bool = False


def subject(record: Record, evidence: Evidence | None) -> str:
    """What was to be forgotten, in words."""
    if record.classes:
        answers = evidence.answers if evidence else None
        kinds = answers.kinds if answers else []
        names = [kinds[label] if 0 <= label < len(kinds) else str(label) for label in record.classes]
        return f"{'class' if len(names) == 1 else 'classes'} {words.listing(names)}"
    return words.count(record.data["forget"].examples, "example") if "forget" in record.data else "part of the data"


def asked(record: Record, evidence: Evidence | None) -> list[tuple[str, str]]:
    """The request, as terms and what they were."""
    forget, retain = record.data.get("forget"), record.data.get("retain")
    if forget is None:
        amount = "no example of it was given; it was known as a class only"
    elif retain is None:
        amount = f"{words.count(forget.examples, 'example')}; the data to be kept were not given"
    else:
        total = forget.examples + retain.examples
        amount = f"{words.count(forget.examples)} of {words.count(total, 'training example')} at hand "
        amount += f"({words.percent(forget.examples / total)})"
    return [
        ("To be forgotten", f"{subject(record, evidence)}: {amount}" if record.classes else amount),
        ("Method", f"{record.method}, seed {record.seed}"),
        ("Guarantee", f"{record.guarantee.value}: {record.guarantee.meaning}"),
    ]


def guaranteed(record: Record) -> list[tuple[str, str]]:
    """The certificate, as terms and what they are; empty where there is none."""
    found = record.certificate
    if found is None:
        return []
    terms = [("Compared with", found.reference), ("For", found.neighbours)]
    if found.sigma:
        terms += [
            ("Loss", f"epsilon {found.epsilon:g}, delta {found.delta:.3g}"),
            ("Noise", f"standard deviation {found.sigma:.3g} on each weight"),
            ("Sensitivity", f"the weights before noise are at most {found.sensitivity:.3g} from the reference's"),
        ]
    if found.residual is not None:
        terms.append(("Residual", f"gradient norm of at most {found.residual:.3g} on the retained data, before noise"))
    if found.budget_spent is not None and found.budget_left is not None:
        spent, left = words.percent(found.budget_spent), words.percent(found.budget_left)
        terms.append(("Budget", f"{spent} spent, {left} left; retrain when it is used up"))
    return terms


def constants(record: Record) -> Table | None:
    """What the guarantee was computed from and how each number is known; None where there is no certificate."""
    found = record.certificate
    if found is None or not found.constants:
        return None
    rows = [[each.name, f"{each.value:.4g}", each.origin.value, each.meaning] for each in found.constants]
    origins = dict.fromkeys(each.origin for each in found.constants)
    note = " ".join(f"{words.capital(origin.value)}: {origin.meaning}." for origin in origins)
    return Table("What it was computed from", ("Constant", "Value", "Origin", "Meaning"), rows, note)


def all_tables(record: Record, evidence: Evidence | None) -> list[Table]:
    """Every table that there is something to put into, in the order of the page."""
    audited = (
        []
        if evidence is None
        else [
            _measures(evidence),
            *_groups(evidence),
            _restorations(evidence),
            *_relearning(evidence.curves),
            _membership(evidence.membership),
            _low_rates(evidence.membership),
            _leaks(evidence),
            _reconstruction(evidence.reconstruction),
            *(_fairness(name, found) for name, found in evidence.fairness.items()),
            _power(evidence),
        ]
    )
    audited += [] if record.choice is None else [_trials(record.choice)]
    settings = [_pairs("Settings of the method", record.settings | {"seed": record.seed})]
    if evidence is not None:
        settings.append(_pairs("Settings of the audit", evidence.settings | {"seed": evidence.seed}))
    settings.append(_pairs("Machine", record.execution))
    tables = [*audited, _phases(record), *settings, _digests(record), _pairs("Versions", record.versions)]
    return [table for table in tables if table.rows]


def _trials(choice: Choice) -> Table:
    rows = [
        [
            trial.method,
            f"{trial.rate:g}",
            "" if trial.gap is None else words.number(trial.gap),
            words.duration(trial.seconds),
            "run" if number == choice.chosen else trial.note,
        ]
        for number, trial in enumerate(choice.ranking)
    ]
    note = (
        f"Rehearsed on {choice.rehearsal}, beside {words.count(choice.oracles, 'oracle')}; budget {choice.budget}. The "
        "gap is the mean, over the measures that are judged, of the distance from the oracles in units of what one "
        "more of them would deviate."
    )
    if choice.gaps_of_oracles:
        note += f" An oracle comes to {words.mean(choice.gaps_of_oracles)}."
    return Table("Methods tried on a rehearsal", ("Method", "Rate", "Gap", "Time", ""), rows, note)


def _measures(evidence: Evidence) -> Table:
    shares = "shares between 0 and 1"
    note = _BAND_NOTE.replace(shares, f"{shares}, or logarithms (log)") if evidence.restorations else _BAND_NOTE
    return Table("Measures", _MEASURE_COLUMNS, [_measure_row(measure) for measure in evidence.measures], note)


def _groups(evidence: Evidence) -> list[Table]:
    if not evidence.groups:
        return []
    shown = shown_groups(evidence.groups)
    left_out = len(evidence.groups) - len(shown)
    note = f"And {words.count(left_out)} more, closer to the oracles; evidence.json holds all." if left_out else ""
    return [Table("Measures by group", _MEASURE_COLUMNS, [_measure_row(measure) for measure in shown], note)]


def _restorations(evidence: Evidence) -> Table:
    found = evidence.restorations
    return Table("What is restored", COLUMNS, restoration_rows(found), restoration_note(found))


_MEASURE_COLUMNS = ("Measure", "On", "Unlearned", "Original", "Mean oracle", "Oracle band", "Unlearned lies")
_BAND_NOTE = (
    f"In brackets: 95{words.SPACE}% interval over examples. Oracle band: where one more oracle would fall with "
    f"95{words.SPACE}% confidence. Divergences are in nats; other measures are shares between 0 and 1."
)


def _measure_row(measure: Measure) -> list[str]:
    return [
        measure.name,
        measure.on,
        words.estimate(measure.unlearned),
        words.estimate(measure.original) if measure.original else "not measured",
        words.mean(measure.oracles),
        words.interval(measure.band),
        words.place(measure),
    ]


def _relearning(curves: Sequence[Curve]) -> list[Table]:
    if not curves:
        return []

    def steps(curve: Curve, model: str) -> str:
        if model not in curve.relearn_steps:
            return "not measured"
        reached = curve.relearn_steps[model]
        return f"more than {curve.steps[-1]}" if reached is None else str(reached)

    models = list(dict.fromkeys(model for curve in curves for model in curve.relearn_steps))
    rows = [[model, *(steps(curve, model) for curve in curves)] for model in models]
    thresholds = words.listing(sorted({words.number(curve.threshold) for curve in curves}))
    note = f"Optimiser steps until quality on forgotten examples reaches 95 % of the original's ({thresholds})."
    return [Table("Steps to relearn", ("Model", *(curve.name for curve in curves)), rows, note)]


def _membership(attacks: Sequence[Membership]) -> Table:
    """Attacks on single examples, a row each."""
    columns = ("Attack", "Held against", "Unlearned", "Original", "Oracles", "Epsilon at least", "Oracles' epsilon")

    def row(attack: Membership) -> list[str]:
        found = attack.unlearned
        bound = found.epsilon
        return [
            _short(attack),
            f"{words.count(found.unseen_examples)} {attack.against}",
            words.estimate(found.auc),
            words.number(attack.original.auc),
            _ends([oracle.auc for oracle in attack.oracles]),
            f"{words.number(bound.lower_bound)} of {words.number(bound.largest)}" if bound else "not from one model",
            _ends([oracle.epsilon for oracle in attack.oracles if oracle.epsilon is not None]),
        ]

    note = (
        "Area under the ROC curve, one half where nothing is told; far below is a leak too. Epsilon: what the scores "
        "show, of the most that so few examples could. Holdout examples are of the same kinds as the forget set and "
        "count as independent. Scores of an oracle are of the same forget examples; one model's scores move together, "
        "so intervals are then over models, and epsilon is told example by example alone."
    )
    return Table("Membership attacks", columns, [row(attack) for attack in attacks], note)


def _low_rates(attacks: Sequence[Membership]) -> Table:
    """How many forget examples an attack finds while it accuses few unseen ones."""
    columns = ("Attack", "False positives", "Members score", "Found, unlearned", "Original", "Oracles")
    rows: list[list[str]] = []
    for attack in attacks:
        for place, rate in enumerate(attack.unlearned.low_rates):
            for direction, point, original, others in (
                ("high", rate.above, attack.original.above, [oracle.above for oracle in attack.oracles]),
                ("low", rate.below, attack.original.below, [oracle.below for oracle in attack.oracles]),
            ):
                if point is None:
                    continue
                theirs = [found for each in others if (found := each[place]) is not None]
                own = original[place]
                shown = words.estimate(point.true_positive_rate), "" if own is None else words.number(own)
                rows.append([_short(attack), words.percent(rate.limit), direction, *shown, _ends(theirs)])
    note = "Left out are rates for which there are too few unseen examples."
    return Table("Found at few false positives", columns, rows, note)


def _short(attack: Membership) -> str:
    return attack.attack.removeprefix("membership (").removesuffix(")")


def _ends(values: Sequence[float]) -> str:
    return f"{words.number(min(values))} to {words.number(max(values))}" if values else "none"


def _leaks(evidence: Evidence) -> Table:
    def optional(value: float | None) -> str:
        return "no shadows" if value is None else words.number(value)

    rows = [
        [
            words.count(leak.position),
            words.number(leak.deviations),
            words.number(leak.quality),
            words.number(leak.oracle_quality),
            optional(leak.likelihood_ratio),
            optional(leak.epsilon),
        ]
        for leak in evidence.leaks
    ]
    columns = ("Position", "Confidence off by", "Quality", "Mean oracle", "U-LiRA", "Epsilon")
    note = (
        "Position in the forget set, from 0. Confidence in standard deviations of one more oracle: above 0 remembered, "
        "below 0 pushed away. U-LiRA in nats, above 0 where the example looks unlearned rather than never seen."
    )
    return Table("The forget examples that leak most", columns, rows, note)


def _reconstruction(found: Reconstruction | None) -> Table:
    rows: list[list[str]] = []
    if found is not None:
        rows = [
            ["cosine with the deleted row", words.number(found.similarity)],
            ["other rows, mean cosine", words.number(found.others)],
            ["other rows at least as like it", words.percent(found.others_as_like)],
            ["random rows, mean cosine", words.number(found.random)],
            ["random rows at least as like it", words.percent(found.random_as_like)],
        ]
    note = found.sentence if found is not None else ""
    return Table("Can the deleted row be recovered from both models?", ("Figure", "Value"), rows, note)


def _fairness(name: str, found: Fairness) -> Table:
    """Each group before and after, and the gap between the best and the worst."""
    columns = ("Group", "Examples", "Measure", "Before", "After", "Change")

    def row(group: str, examples: str, change: Change) -> list[str]:
        return [group, examples, change.name, *map(words.estimate, (change.before, change.after, change.change))]

    rows = [
        row(group.group, words.count(group.examples), change) for group in found.groups for change in group.measures
    ]
    rows += [row("largest gap", "", gap) for gap in found.gaps]
    note = (
        f"Selected is who is given class {found.positive}. Intervals by a paired bootstrap over holdout examples. A "
        "gap is above 0 by chance alone; its change tells whether groups are treated more alike than before."
    )
    return Table(f"By {name}, before and after", columns, rows, note)


def _power(evidence: Evidence) -> Table:
    rows = [
        [measure.name, measure.on, words.number(measure.detectable), words.number(measure.deviation)]
        for measure in evidence.measures
        if measure.detectable is not None
    ]
    power = words.percent(float(evidence.settings.get("margins", {}).get("power", 0.8)))
    note = (
        f"A true difference of this size would have been found in {power} of audits like this one, where nothing else "
        "differs. Scatter: standard deviation of one more retrained model."
    )
    return Table("What would have been found", ("Measure", "On", "Difference", "Scatter"), rows, note)


def _phases(record: Record) -> Table:
    rows = [
        [
            phase.name,
            words.count(phase.steps),
            words.count(phase.examples),
            words.duration(phase.seconds),
            words.size(phase.peak_memory_bytes),
        ]
        for phase in record.phases
    ]
    steps, memory = sum(phase.steps for phase in record.phases), words.size(record.peak_memory_bytes)
    rows.append(["all", words.count(steps), words.count(record.examples), words.duration(record.seconds), memory])
    columns = ("Phase", "Steps", "Examples", "Time", "Peak memory")
    return Table("What was done", columns, rows, "Examples: passes of one example forward and backward.")


def _digests(record: Record) -> Table:
    rows = [["original model", record.original_digest], ["unlearned model", record.result_digest]]
    rows += [
        [f"{name} set, {words.count(data.examples, 'example')}", data.digest] for name, data in record.data.items()
    ]
    note = (
        "SHA-256. Those of data and of the original model are keyed with a secret that only the owner has, so that no "
        "guess can be tested."
    )
    return Table("Digests", ("Of", "Digest"), rows, note, code=True)


def _pairs(heading: str, values: Mapping[str, Any]) -> Table:
    return Table(heading, ("Name", "Value"), list(_flat(values)), code=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows: list[list[str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(cast(Mapping[str, Any], value), f"{prefix}{name}.")
        else:
            rows.append([f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)])
    return rows
