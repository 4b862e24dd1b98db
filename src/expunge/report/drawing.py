"""The look that all figures share, and how a figure becomes a part of a page."""

# pyright: reportUnknownMemberType=false
# Matplotlib's own annotations leave keyword arguments open.

import io
import re
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup, escape
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

T = TypeVar("T")

WIDTH = 4.6  # inches; on a phone this is shown at four fifths, which leaves 10 points legible
LABEL_LENGTH = 22  # characters beside an axis

# Okabe & Ito's palette, told apart with any colour vision; shapes and line styles differ as well.
UNLEARNED, ORIGINAL, ORACLE, BAND, QUIET = "#D55E00", "#000000", "#0072B2", "#56B4E9", "#595959"

_STYLE: dict[str, Any] = {
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: sharp, searchable, in the page's own font
    "svg.hashsalt": "expunge",
    "text.parse_math": False,  # a class may be called $x$
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page; where there is nothing to draw, the caption says so.

    Attributes:
        heading: What is shown.
        caption: How to read it, in a sentence.
        svg: The drawing.
    """

    heading: str
    caption: str
    svg: Markup | None = None


@contextmanager
def house_style() -> Generator[None]:
    """Draw alike on every machine, whatever matplotlib's own configuration there."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser draws the text, so glyphs that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the common width; `height` in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def rows_figure(rows: int, row_height: float, legend: Sequence[Artist]) -> tuple[Figure, Axes]:
    """A figure with one horizontal row a thing, the first on top, and a legend above."""
    figure = new_figure(0.85 + legend_height(legend) + row_height * rows)
    axes = figure.add_subplot()
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    add_legend(figure, legend)
    return figure, axes


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend above all axes, in two columns."""
    figure.legend(handles=list(handles), loc="outside upper left", ncols=2, handlelength=1.8, columnspacing=1.2)


def legend_height(handles: Sequence[Artist]) -> float:
    """Inches that a legend takes."""
    return 0.23 * ((len(handles) + 1) // 2)


def key_unlearned() -> Artist:
    """Legend entry."""
    return Line2D([], [], color=UNLEARNED, marker="o", linewidth=2, label="unlearned (95 % interval)")


def key_original() -> Artist:
    """Legend entry."""
    return Line2D([], [], color=ORIGINAL, marker="o", fillstyle="none", linestyle="none", label="original")


def key_oracles() -> Artist:
    """Legend entry."""
    return Line2D([], [], color=ORACLE, marker="|", markersize=11, linestyle="none", label="oracles")


def key_band() -> Artist:
    """Legend entry."""
    return Patch(facecolor=BAND, alpha=0.5, label="oracle band")


def label(text: str) -> str:
    """A name that fits beside an axis: on one line, and without its middle where it is long."""
    text, half = " ".join(text.split()), LABEL_LENGTH // 2
    return text if len(text) <= LABEL_LENGTH else f"{text[:half]}…{text[-half:]}"


def foremost(items: Sequence[T], most: int, importance: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The most important items, in their own order."""
    ranked = sorted(range(len(items)), key=lambda position: importance(items[position]), reverse=True)
    return [items[position] for position in sorted(ranked[:most])]


def to_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an element to stand within HTML.

    Args:
        figure: What was drawn.
        name: Prefix of every id inside, so that several figures can share a page.
        title: Its name, for those who do not see it.
        description: What it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = buffer.getvalue()
    content = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    content = re.sub(r"<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", content, flags=re.DOTALL)
    # Only within tags: text such as a class name is escaped and holds no angle brackets.
    content = re.sub(r"<[^>]+>", lambda tag: re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag[0]), content)
    width, height = (72 * inches for inches in figure.get_size_inches())
    opening = (
        f'<svg viewBox="0 0 {width:.1f} {height:.1f}" width="{width:.1f}pt" height="{height:.1f}pt" role="img" '
        f'aria-labelledby="{name}-title {name}-description">'
    )
    words = (
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    )
    return Markup(f"{opening}{words}{content.strip()}</svg>")
