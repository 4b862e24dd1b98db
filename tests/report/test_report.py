import errno
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from expunge.audit.evidence import Aspect, Evidence, Side, Verdict
from expunge.errors import OutputError, SavedModelError
from expunge.methods import Tier
from expunge.report import render, write_report
from expunge.report.comparisons import MOST_GROUPS, shown_groups
from expunge.report.figures import MOST_ANSWERS, MOST_LAYERS, MOST_ORACLES, _layer_labels, pictures
from expunge.report.words import duration
from expunge.unlearning import Record

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, and no id is given twice."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.elements: Counter[str] = Counter()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name.rpartition(":")[2] in {"src", "href", "action", "data", "srcset"}:
                self.references.append(value or "")
            self.references += re.findall(r"url\(\s*['\"]?([^)'\"]*)", value or "")
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "style":
            self.references += re.findall(r"url\(\s*['\"]?([^)'\"]*)|@import", data)


def words(text: str) -> str:
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


def changed(part: Any, **changes: Any) -> Any:
    return type(part).model_validate(part.model_dump() | changes)


@pytest.fixture(scope="module")
def html(record: Record, evidence: Evidence) -> str:
    return render(record, evidence)


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time, and many tests look at text only."""
    monkeypatch.setattr("expunge.report.page.pictures", lambda evidence: [])


def test_page_is_well_formed_and_its_ids_are_unique(html: str) -> None:
    page = Page(html)
    assert page.elements["svg"] == page.elements["figure"] == page.elements["figcaption"] == 9
    assert page.elements["title"] == 10  # the page's and one a figure
    assert [name for name, times in page.ids.items() if times > 1] == []


def test_no_formula_is_left_unset_in_a_figure(html: str) -> None:
    assert "mathdefault" not in html


def test_page_loads_nothing_and_every_reference_is_to_itself(html: str) -> None:
    page = Page(html)
    assert page.references
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.elements)


def test_sections_stand_in_the_order_a_reader_needs(html: str) -> None:
    text = words(Page(html).text)
    order = ["What was asked", "Verdict: residual influence", "Accuracy on each set", "Accuracy by group",
             "What is predicted on the forget set", "Learning the forget set again", "What it cost",
             "How far the weights moved", "The numbers in full",
             "What this can and cannot show"]  # fmt: skip
    places = [text.index(heading) for heading in order]
    assert places == sorted(places)


def test_request_is_told_in_words(html: str) -> None:
    text = words(Page(html).text)
    assert "class 3: 146 of 1,437 training examples at hand (10.2 %)" in text
    assert "UNSIR, seed 7" in text
    assert f"empirical: {Tier.EMPIRICAL.meaning}" in text


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("verdict", list(Verdict))
def test_verdict_and_findings_appear(record: Record, evidence: Evidence, verdict: Verdict) -> None:
    html = render(record, changed(evidence, verdict=verdict))
    text = words(Page(html).text)
    assert f"Verdict: {verdict.value} {evidence.sentence}" in text
    assert all(words(finding.text) in text for finding in evidence.findings)
    assert f'class="verdict {verdict.name.lower()}"' in html


def test_markup_in_any_text_is_escaped(record: Record, evidence: Evidence) -> None:
    attack = "<script>alert(1)</script>"
    assert evidence.answers is not None
    hostile = changed(
        evidence,
        sentence=attack,
        findings=[{"verdict": Verdict.RESIDUAL, "text": attack}],
        groups=[changed(evidence.groups[0], on=attack), changed(evidence.groups[3], on='" id="stolen')],
        answers=changed(evidence.answers, kinds=[attack, *evidence.answers.kinds[1:]]),
        layers=[changed(evidence.layers[0], layer=attack)],
        settings={attack: attack},
    )
    html = render(changed(record, settings={attack: attack}, classes=[0]), hostile, title=attack)
    page = Page(html)
    assert "<script" not in html
    assert "stolen" not in page.ids
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6


def test_class_names_are_drawn_as_they_are(evidence: Evidence) -> None:
    groups = [changed(evidence.groups[0], on="$x_1$"), changed(evidence.groups[3], on="猫")]
    drawn = pictures(only(evidence, groups=groups))[1].svg
    assert drawn is not None
    assert ">$x_1$</text>" in drawn
    assert ">猫</text>" in drawn


def test_two_renders_are_equal(html: str, record: Record, evidence: Evidence) -> None:
    assert render(record, evidence) == html


def test_numbers_in_the_table_are_those_of_the_evidence(html: str, evidence: Evidence) -> None:
    rows = {tuple(row[:2]): row for row in Page(html).rows if len(row) == 7}
    for measure in (*evidence.measures, *evidence.groups):
        _, _, unlearned, original, oracle, band, lies = rows[measure.name, measure.on]
        value = measure.unlearned
        assert unlearned == f"{value.value:.3f} ({value.interval.low:.3f} to {value.interval.high:.3f})"
        assert measure.original is not None
        assert original.startswith(f"{measure.original.value:.3f} ")
        assert oracle == f"{sum(measure.oracles) / len(measure.oracles):.3f}"
        assert band == f"{measure.band.low:.3f} to {measure.band.high:.3f}"
        if not measure.aspect.judged:
            assert lies == "not judged"
            continue
        assert (measure.side is Side.ABOVE) == lies.startswith("above retraining")
        assert (measure.side is Side.BELOW) == lies.startswith("below retraining")


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(
    ("value", "side", "needed", "lies"),
    [
        (0.97, Side.INSIDE, None, "as retraining, at most 0.040 off"),
        (0.9, Side.BELOW, None, "below retraining, 0.050 beyond the band"),
        (1.0, Side.ABOVE, None, "above retraining, 0.010 beyond the band"),
        (0.97, Side.UNDECIDED, 12, "undecided; 12 oracles would probably decide"),
        (0.97, Side.UNDECIDED, None, "undecided, whatever the number of oracles"),
    ],
)
def test_where_a_measure_lies_is_told_in_words(
    record: Record, evidence: Evidence, value: float, side: Side, needed: int | None, lies: str
) -> None:
    point = {"value": value, "interval": {"low": value, "high": value}}
    measure = changed(
        evidence.measures[0],
        unlearned=point,
        band={"low": 0.95, "high": 0.99},
        side=side,
        at_most=0.04,
        oracles_needed=needed,
    )
    rows = Page(render(record, changed(evidence, measures=[measure]))).rows
    assert [row[6] for row in rows if row[:2] == ["accuracy", "forget"] and len(row) == 7] == [lies]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0004, "0.40 ms"), (0.0043, "4.3 ms"), (0.075, "75 ms"), (0.1, "0.10 s"), (12.0, "12 s"), (7200.0, "2.0 h")],
)
def test_durations_are_told_in_the_unit_that_shows_them(seconds: float, told: str) -> None:
    assert words(duration(seconds)) == told


def test_relearn_steps_and_phases_are_tabled(html: str, record: Record) -> None:
    rows = [[words(cell) for cell in row] for row in Page(html).rows]
    assert ["unlearned", "20", "5"] in rows
    assert ["oracle 3", "more than 40", "40"] in rows
    assert ["impair", "6", "1,419", "0.73 s", "531.0 MiB"] in rows
    assert ["all", "52", "3,990", "1.87 s", "540.0 MiB"] in rows
    assert ["relearning.steps", "[0, 5, 10, 20, 40]"] in rows
    assert ["unlearned model", record.result_digest] in rows
    assert ["torch", "2.13.0"] in rows


def test_cost_is_told_as_a_share(html: str, evidence: Evidence) -> None:
    assert "1.87 s, 7.7 % of one retraining" in words(html)
    dear = only(
        evidence,
        cost=changed(evidence.cost, share_of_retraining={"value": 2.54, "interval": {"low": 2.4, "high": 2.7}}),
    )
    assert "2.5 times as much as one retraining" in words(pictures(dear)[4].caption)


def only(evidence: Evidence, **kept: Any) -> Evidence:
    """Evidence in which all that can be missing is missing, but for what is given."""
    bare = {"measures": [], "groups": [], "answers": None, "curves": [], "layers": [], "findings": [], "membership": []}
    bare |= {"percentiles": [], "margins": {}, "epsilons": None, "leaks": []}
    cost = changed(evidence.cost, oracle_seconds=[], share_of_retraining=None)
    return changed(evidence, **bare | {"cost": cost} | kept)


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("measures", "The evidence holds no measure of quality on whole sets."),
        ("groups", "The evidence holds no measure by group."),
        ("answers", "This task has no kinds of answer"),
        ("curves", "No relearning test was made."),
        ("cost", "the oracles were not trained here"),
        ("layers", "The evidence holds no distances between weights."),
        ("membership", "Membership of single examples was not attacked."),
        ("percentiles", "With fewer than three oracles nothing can be told of single examples."),
        ("epsilons", "Epsilon of single examples was not estimated."),
    ],
)
def test_a_missing_part_becomes_a_sentence(record: Record, evidence: Evidence, part: str, sentence: str) -> None:
    alone = Page(render(record, only(evidence, **{part: getattr(evidence, part)})))
    assert (alone.elements["svg"], alone.elements["figure"]) == (1, 9)
    assert sentence not in words(alone.text)
    without = Page(render(record, only(evidence)))
    assert (without.elements["svg"], without.elements["figure"]) == (0, 9)
    assert sentence in words(without.text)
    assert "There are no findings." in words(without.text)


def test_layers_are_told_apart_by_their_numbers_and_ends() -> None:
    names = [f"vit.layers.{place}.attention.{part}" for place in (0, 11) for part in ("q_proj", "o_proj")]
    names += ["decoder.decoder_layers.0.attention.q_proj", "fc"]
    assert _layer_labels(names) == [
        "vit…0.attention.q_proj",
        "vit…0.attention.o_proj",
        "vit.layers.11…q_proj",
        "vit.layers.11…o_proj",
        "decoder…0…q_proj",
        "fc",
    ]
    assert _layer_labels(["net.0.weight", "net.2.weight"]) == ["0.weight", "2.weight"]


def test_measures_without_an_original_are_drawn_without_it(record: Record, evidence: Evidence) -> None:
    parts = {
        name: [changed(measure, original=None) for measure in getattr(evidence, name)]
        for name in ("measures", "groups")
    }
    page = Page(render(record, only(evidence, **parts)))
    assert page.elements["svg"] == 2
    assert "not measured" in page.text


def test_one_oracle_or_none_is_enough_to_draw(record: Record, evidence: Evidence) -> None:
    for kept in (0, 1):
        fewer = {"band": {"low": 0.0, "high": float("inf")}}
        assert evidence.answers is not None
        few = changed(
            evidence,
            measures=[changed(measure, **fewer | {"oracles": measure.oracles[:kept]}) for measure in evidence.measures],
            groups=[changed(measure, **fewer | {"oracles": measure.oracles[:kept]}) for measure in evidence.groups],
            curves=[changed(curve, oracles=curve.oracles[:kept]) for curve in evidence.curves],
            answers=changed(evidence.answers, oracles=evidence.answers.oracles[:kept]),
            layers=[changed(layer, oracles=layer.oracles[:kept]) for layer in evidence.layers],
        )
        assert Page(render(record, few)).elements["svg"] == 9


def test_a_run_without_audit_says_that_nothing_is_known(record: Record) -> None:
    page = Page(render(record, None))
    assert "This run was not audited, so nothing is known" in words(page.text)
    assert page.elements["svg"] == page.elements["figure"] == 0


def test_a_forget_set_known_only_as_a_class(record: Record) -> None:
    absent = changed(record, data={"retain": record.data["retain"]})
    assert "class 3: no example of it was given" in words(Page(render(absent, None)).text)


def test_examples_forgotten_without_a_class(record: Record) -> None:
    text = words(Page(render(changed(record, classes=[]), None)).text)
    assert "UNSIR: forgetting 146 examples" in text
    assert "one of them may be remembered while the average of all looks right" in text


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize(("tier", "failed"), [(Tier.CERTIFIED, True), (Tier.EXACT, True), (Tier.EMPIRICAL, False)])
def test_evidence_against_a_guarantee_is_called_a_failure(
    record: Record, evidence: Evidence, tier: Tier, failed: bool
) -> None:
    text = words(Page(render(changed(record, guarantee=tier), evidence)).text)
    assert ("This run failed" in text) is failed
    assert tier.meaning in text


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("verdict", [Verdict.UTILITY_LOST, Verdict.RESIDUAL])
@pytest.mark.parametrize("residual", [True, False])
def test_any_residual_finding_overrules_a_guarantee(
    record: Record, evidence: Evidence, verdict: Verdict, residual: bool
) -> None:
    kind = Verdict.RESIDUAL if residual else Verdict.OVER_FORGOTTEN
    found = changed(evidence, verdict=verdict, findings=[{"verdict": kind, "text": "Something."}])

    text = words(Page(render(changed(record, guarantee=Tier.CERTIFIED), found)).text)

    assert ("This run failed" in text) is residual


def test_evidence_of_another_model_is_refused(record: Record, evidence: Evidence) -> None:
    with pytest.raises(SavedModelError, match="cccccccccccc"):
        render(record, changed(evidence, result_digest="c" * 64))


def test_much_of_everything_stays_bounded(html: str, record: Record, evidence: Evidence) -> None:
    kept, forgotten = evidence.groups[0], evidence.groups[3]
    groups = [changed(kept if number else forgotten, on=f"group {number}") for number in range(100)]
    far = {"value": 0.1, "interval": {"low": 0.05, "high": 0.15}}
    groups[57] = changed(groups[57], unlearned=far, side=Side.BELOW)
    many = changed(
        evidence,
        groups=groups,
        layers=[changed(evidence.layers[0], layer=f"net.{place}.weight", oracles=[]) for place in range(150)],
        answers={"kinds": [f"kind {number}" for number in range(100)], "unlearned": [far] * 100,
                 "original": [0.01] * 100, "oracles": [[0.01] * 100] * 3},
        cost=changed(evidence.cost, oracle_seconds=[30.0] * 40),
    )  # fmt: skip
    crowded = render(record, many)
    text = words(Page(crowded).text)
    for total, most, what in [
        (100, MOST_GROUPS, "groups lie closer"),
        (100, MOST_ANSWERS, "answers differ less"),
        (150, MOST_LAYERS, "layers lie closer"),
        (40, MOST_ORACLES, "oracles are left out"),
    ]:
        assert f"{total - most} more {what}" in text
    assert groups[0].aspect is Aspect.FORGETTING
    assert {"group 0", "group 57"} <= {row[1] for row in Page(crowded).rows}
    assert len(crowded) < 2 * len(html)


def test_many_forgotten_groups_leave_room_for_kept_ones(evidence: Evidence) -> None:
    kept, forgotten = evidence.groups[0], evidence.groups[3]
    mixed = [changed(forgotten if number < 50 else kept, on=f"group {number}") for number in range(100)]
    for groups, expected in [(mixed, MOST_GROUPS // 2), (mixed[:50], MOST_GROUPS), (mixed[48:], 2), (mixed[50:], 0)]:
        shown = shown_groups(groups)
        assert len(shown) == MOST_GROUPS
        assert sum(group.aspect is Aspect.FORGETTING for group in shown) == expected


def test_the_users_own_matplotlib_settings_neither_matter_nor_change(
    html: str, record: Record, evidence: Evidence
) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.linewidth": 7, "svg.fonttype": "path"}):
        assert render(record, evidence) == html
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.usefixtures("without_figures")
def test_the_page_is_written(tmp_path: Path, record: Record, evidence: Evidence) -> None:
    path = write_report(tmp_path / "new", record, evidence, title="A title")
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8") == render(record, evidence, title="A title")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


@pytest.mark.usefixtures("without_figures")
def test_a_full_disk_leaves_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record, evidence: Evidence
) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_report(tmp_path, record, evidence)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("report.html", "old")]
