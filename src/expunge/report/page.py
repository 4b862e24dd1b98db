"""From a record and its evidence to one HTML page."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from expunge.audit.evidence import Evidence, Verdict
from expunge.errors import SavedModelError
from expunge.privacy import Tier
from expunge.report import tables, words
from expunge.report.figures import pictures
from expunge.storage import write_text
from expunge.unlearning import Record

REPORT_FILE = "report.html"


def render(record: Record, evidence: Evidence | None, *, title: str | None = None) -> str:
    """One self-contained HTML page: what was asked, the verdict, figures, tables, and what they can show.

    The page loads nothing and runs nothing, holds no example of anyone's data, and is a function of its arguments.

    Args:
        record: What was done.
        evidence: What the audit found; None for a run that was not audited.
        title: Heading of the page; by default the method and what it was to forget.

    Raises:
        SavedModelError: The evidence speaks of another model than the record.
    """
    if evidence is not None and evidence.result_digest != record.result_digest:
        raise SavedModelError(
            f"the evidence speaks of model {evidence.result_digest[:12]}…, the record of {record.result_digest[:12]}…; "
            "audit this run, or pass the evidence that belongs to it"
        )
    subject = tables.subject(record, evidence)
    return _template().render(
        title=title or f"{record.method}: forgetting {subject}",
        record=record,
        evidence=evidence,
        asked=tables.asked(record, evidence),
        overruled=_overruled(record, evidence),
        pictures=pictures(evidence) if evidence else [],
        tables=tables.all_tables(record, evidence),
        certificate=record.certificate,
        guaranteed=tables.guaranteed(record),
        constants=tables.constants(record),
        finished=f"{record.finished:%d %B %Y, %H:%M %Z}",
        took=words.duration(record.seconds),
    )


def write_report(folder: str | Path, record: Record, evidence: Evidence | None, title: str | None = None) -> Path:
    """Write `report.html` into a folder, atomically.

    Args:
        folder: Where to; it is made where it is missing.
        record: What was done.
        evidence: What the audit found, if there was one.
        title: Heading of the page.

    Returns:
        The path of the page.

    Raises:
        SavedModelError: The evidence speaks of another model than the record.
        OutputError: The folder cannot be written or the disk is full; a page already there stays as it was.
    """
    path = Path(folder) / REPORT_FILE
    write_text(path, render(record, evidence, title=title))
    return path


def _overruled(record: Record, evidence: Evidence | None) -> bool:
    """Whether the evidence contradicts what the method promised."""
    if evidence is None or record.guarantee is Tier.EMPIRICAL:
        return False
    return any(finding.verdict is Verdict.RESIDUAL for finding in evidence.findings)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
