"""Figures that set a quality of the unlearned model beside the oracles', a row a set or group."""

# pyright: reportUnknownMemberType=false
# Matplotlib's own annotations leave keyword arguments open.

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from expunge.audit.evidence import Aspect, Evidence, Interval, Measure
from expunge.report import words
from expunge.report.drawing import (
    BAND,
    ORACLE,
    ORIGINAL,
    UNLEARNED,
    Picture,
    add_legend,
    foremost,
    key_band,
    key_oracles,
    key_original,
    key_unlearned,
    label,
    legend_height,
    new_figure,
    to_svg,
)

MOST_GROUPS = 12
_NARROWEST_SCALE = 0.05


def quality_figure(evidence: Evidence) -> Picture:
    """The first kind of quality on every whole set."""
    candidates = [each for each in evidence.measures if each.aspect in (Aspect.FORGETTING, Aspect.UTILITY)]
    kind = (*evidence.groups, *candidates)[0].name if evidence.groups or candidates else ""
    measures = [measure for measure in candidates if measure.name == kind]
    if not measures:
        return Picture("Quality", "The evidence holds no measure of quality on whole sets.")
    heading = f"{words.capital(measures[0].name)} on each set"
    legend = _legend(measures)
    figure = new_figure(0.15 + legend_height(legend) + 0.78 * len(measures))
    add_legend(figure, legend)
    for axes, measure in zip(figure.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
        _compare(axes, 0, measure)
        axes.set_title(measure.on)
        axes.set_yticks([])
        axes.set_ylim(0.6, -0.6)
        axes.set_xlim(*_scale([measure]))
        axes.locator_params(axis="x", nbins=6)
    caption = (
        "The unlearned model should lie where the oracles lie; each row has a scale of its own, and the paler part of "
        "a bar is the margin that is never held against it."
    )
    return Picture(heading, caption, to_svg(figure, "quality", heading, _described(measures)))


def groups_figure(groups: Sequence[Measure]) -> Picture:
    """The same by group, what is forgotten apart from what is kept."""
    if not groups:
        return Picture("By group", "The evidence holds no measure by group.")
    shown = shown_groups(groups)
    heading = f"{words.capital(shown[0].name)} by group"
    panels = [
        (title, panel)
        for title, forgotten in (("to be forgotten", True), ("to be kept", False))
        if (panel := [group for group in shown if _is_forgotten(group) is forgotten])
    ]
    legend = _legend(shown)
    figure = new_figure(0.2 + legend_height(legend) + 0.55 * len(panels) + 0.3 * len(shown))
    add_legend(figure, legend)
    ratios = [0.4 + len(panel) for _, panel in panels]
    for axes, (title, panel) in zip(
        figure.subplots(len(panels), squeeze=False, height_ratios=ratios)[:, 0], panels, strict=True
    ):
        for row, measure in enumerate(panel):
            _compare(axes, row, measure)
        axes.set_title(title)
        axes.set_yticks(range(len(panel)), [label(group.on) for group in panel])
        axes.set_ylim(len(panel) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(*_scale(panel))
    caption = (
        "Each group, such as a class, is read like the figure on whole sets; mind that what is kept and what is "
        "forgotten have a scale each"
    )
    caption += words.left_out(len(groups) - len(shown), "groups lie closer to the oracles and are left out")
    return Picture(heading, caption, to_svg(figure, "groups", heading, _described(shown)))


def shown_groups(groups: Sequence[Measure]) -> list[Measure]:
    """The groups for which there is room, forgotten ones first: of either kind those furthest from the oracles."""

    def distance(measure: Measure) -> tuple[float, ...]:
        value, band = measure.unlearned.value, measure.band
        centre = float(np.mean(measure.oracles)) if measure.oracles else value
        return max(band.low - value, value - band.high, 0.0), abs(value - centre)

    kept = [group for group in groups if not _is_forgotten(group)]
    forgotten = foremost(
        [group for group in groups if _is_forgotten(group)], max(MOST_GROUPS // 2, MOST_GROUPS - len(kept)), distance
    )
    return forgotten + foremost(kept, MOST_GROUPS - len(forgotten), distance)


def _compare(axes: Axes, row: int, measure: Measure) -> None:
    """One row: the band with its margin, each oracle, the original, and the unlearned model over them."""
    for bar in (_band(measure, measure.margin), _band(measure)):
        axes.barh(row, bar.high - bar.low, 0.7, bar.low, color=BAND, alpha=0.35, linewidth=0)
    axes.plot(measure.oracles, [row] * len(measure.oracles), "|", color=ORACLE, markersize=11)
    if measure.original is not None:
        axes.plot(measure.original.value, row, "o", color=ORIGINAL, fillstyle="none", markersize=8, clip_on=False)
    interval = measure.unlearned.interval
    axes.hlines(row, interval.low, interval.high, color=UNLEARNED, linewidth=2)
    axes.plot(measure.unlearned.value, row, "o", color=UNLEARNED, markersize=6, clip_on=False)


def _band(measure: Measure, margin: float = 0.0) -> Interval:
    """The band and a margin; quality is a share, so nothing lies outside 0 to 1."""
    return Interval(low=max(measure.band.low - margin, 0.0), high=min(measure.band.high + margin, 1.0))


def _legend(measures: Sequence[Measure]) -> list[Artist]:
    original = [key_original()] if any(measure.original for measure in measures) else []
    return [key_unlearned(), *original, key_band(), key_oracles()]


def _scale(measures: Sequence[Measure]) -> tuple[float, float]:
    """Ends of an axis that holds all that is drawn, with some room."""
    values: list[float] = []
    for measure in measures:
        for drawn in (measure.unlearned.interval, _band(measure, measure.margin)):
            values += [drawn.low, drawn.high]
        values += [measure.unlearned.value, *measure.oracles]
        values += [measure.original.value] if measure.original else []
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), (_NARROWEST_SCALE - (high - low)) / 2)
    return low - room, high + room


def _is_forgotten(group: Measure) -> bool:
    return group.aspect is Aspect.FORGETTING


def _described(measures: Sequence[Measure]) -> str:
    return "; ".join(
        f"{measure.on}: unlearned {words.estimate(measure.unlearned)}, oracles {words.mean(measure.oracles)}, "
        f"{words.place(measure)}"
        for measure in measures
    )
