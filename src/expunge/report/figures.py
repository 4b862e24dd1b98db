"""The six figures of the page."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from expunge.audit.evidence import Answers, Aspect, Cost, Curve, Evidence, Interval, LayerDistance, Measure
from expunge.report import words
from expunge.report.drawing import (
    BAND,
    ORACLE,
    ORIGINAL,
    QUIET,
    UNLEARNED,
    Picture,
    add_legend,
    house_style,
    key_band,
    key_oracles,
    key_original,
    key_unlearned,
    label,
    legend_height,
    new_figure,
    rows_figure,
    to_svg,
)

T = TypeVar("T")

MOST_GROUPS, MOST_ANSWERS, MOST_LAYERS, MOST_ORACLES = 12, 10, 16, 10
_NARROWEST_SCALE = 0.05


def pictures(evidence: Evidence) -> list[Picture]:
    """All figures in the order of the page."""
    with house_style():
        return [
            _quality(evidence),
            _groups(evidence.groups),
            _answers(evidence.answers),
            _relearning(evidence.curves),
            _cost(evidence.cost),
            _layers(evidence.layers),
        ]


def headline(evidence: Evidence) -> list[Measure]:
    """The measures of the first kind of quality, on every set."""
    kind = (*evidence.groups, *evidence.measures)[0].name if evidence.groups or evidence.measures else ""
    return [measure for measure in evidence.measures if measure.name == kind]


def shown_groups(groups: Sequence[Measure]) -> list[Measure]:
    """The groups for which there is room: the forgotten ones, then those furthest from the oracles."""

    def importance(measure: Measure) -> tuple[bool, float, float]:
        value, band = measure.unlearned.value, measure.band
        centre = float(np.mean(measure.oracles)) if measure.oracles else value
        return measure.aspect is Aspect.FORGETTING, max(band.low - value, value - band.high, 0.0), abs(value - centre)

    return _foremost(groups, MOST_GROUPS, importance)


def _quality(evidence: Evidence) -> Picture:
    measures = headline(evidence)
    if not measures:
        return Picture("Quality", "The evidence holds no measure of quality on whole sets.")
    heading = f"{_capital(measures[0].name)} on each set"
    legend = _comparison_legend(measures)
    figure = new_figure(0.15 + legend_height(legend) + 0.78 * len(measures))
    add_legend(figure, legend)
    for axes, measure in zip(figure.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
        _compare(axes, 0, measure)
        axes.set_title(label(measure.on))
        axes.set_yticks([])
        axes.set_ylim(0.6, -0.6)
        axes.set_xlim(*_scale([measure]))
        axes.locator_params(axis="x", nbins=6)
    caption = (
        "The unlearned model should lie where the oracles lie; each row has a scale of its own, and the paler part of "
        "a bar is the margin that still counts as inside."
    )
    return Picture(heading, caption, to_svg(figure, "quality", heading, _described(measures)))


def _groups(groups: Sequence[Measure]) -> Picture:
    if not groups:
        return Picture("By group", "The evidence holds no measure by group.")
    shown = shown_groups(groups)
    heading = f"{_capital(shown[0].name)} by group"
    figure, axes = rows_figure(len(shown), 0.3, legend := _comparison_legend(shown))
    for row, measure in enumerate(shown):
        _compare(axes, row, measure)
    axes.set_yticks(
        range(len(shown)),
        [label(group.on) + (" (forgotten)" if group.aspect is Aspect.FORGETTING else "") for group in shown],
    )
    axes.set_xlim(*_scale(shown))
    caption = "Each group, such as a class, is read like the figure on whole sets, here on one common scale"
    caption += _rest(len(groups) - len(shown), "groups lie closer to the oracles and are left out")
    return Picture(heading, caption, to_svg(figure, "groups", heading, _described(shown)))


def _answers(answers: Answers | None) -> Picture:
    heading = "What is predicted on the forget set"
    if answers is None or not answers.kinds:
        return Picture(heading, "This task has no kinds of answer whose frequency could be shown.")
    oracles = np.asarray(answers.oracles, dtype=float).reshape(-1, len(answers.kinds))
    reference = oracles.mean(0) if len(oracles) else np.asarray(answers.original)
    rows = _foremost(
        range(len(answers.kinds)), MOST_ANSWERS, lambda kind: abs(answers.unlearned[kind] - float(reference[kind]))
    )
    series = [("unlearned", np.asarray(answers.unlearned), UNLEARNED, UNLEARNED)]
    series += [("mean oracle, with range", oracles.mean(0), ORACLE, BAND)] if len(oracles) else []
    series += [("original", np.asarray(answers.original), ORIGINAL, "white")]
    legend = [Patch(edgecolor=edge, facecolor=face, label=name) for name, _, edge, face in series]
    figure, axes = rows_figure(len(rows), 0.42, legend)
    thickness = 0.8 / len(series)
    for place, (name, values, edge, face) in enumerate(series):
        heights = [row - 0.4 + thickness * (place + 0.5) for row in range(len(rows))]
        axes.barh(heights, values[rows], thickness * 0.9, color=face, edgecolor=edge, linewidth=0.8)
        if name.startswith("mean"):
            axes.hlines(heights, oracles.min(0)[rows], oracles.max(0)[rows], color=ORACLE, linewidth=2.5)
    axes.set_yticks(range(len(rows)), [label(answers.kinds[row]) for row in rows])
    axes.set_xlim(0)
    axes.set_xlabel("mean predicted probability")
    caption = (
        "A retrained model spreads the forget set over the answers that remain; bars of the unlearned model that "
        "differ from the oracles' tell that it was not retrained"
    )
    caption += _rest(len(answers.kinds) - len(rows), "answers differ less and are left out")
    described = "; ".join(
        f"{answers.kinds[row]}: unlearned {words.number(answers.unlearned[row])}, "
        f"oracles {words.mean([each[row] for each in answers.oracles])}"
        for row in rows
    )
    return Picture(heading, caption, to_svg(figure, "answers", heading, described))


def _relearning(curves: Sequence[Curve]) -> Picture:
    heading = "Learning the forget set again"
    if not curves:
        return Picture(heading, "No relearning test was made.")
    legend: list[Artist] = [
        Line2D([], [], color=UNLEARNED, marker="o", label="unlearned (95 % interval)"),
        Line2D([], [], color=ORACLE, linewidth=0.8, label="oracles"),
        Line2D([], [], color=ORIGINAL, marker="o", fillstyle="none", linestyle=":", label="original"),
        key_band(),
        Line2D([], [], color=QUIET, linestyle="--", label="counts as relearned"),
    ]
    figure = new_figure(0.1 + legend_height(legend) + 2.3 * len(curves))
    add_legend(figure, legend)
    for axes, curve in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves, strict=True):
        _draw_curve(axes, curve)
    caption = (
        "Each model is trained again on a few forgotten examples and measured on the others: a model that rises "
        "sooner than the oracles still held something of the forget set."
    )
    described = "; ".join(
        f"{curve.name}: unlearned from {words.number(curve.unlearned[0].value)} to "
        f"{words.number(curve.unlearned[-1].value)} in {curve.steps[-1]} steps, oracles from "
        f"{words.mean([each[0] for each in curve.oracles])} to {words.mean([each[-1] for each in curve.oracles])}"
        for curve in curves
    )
    return Picture(heading, caption, to_svg(figure, "relearning", heading, described))


def _draw_curve(axes: Axes, curve: Curve) -> None:
    if curve.band:
        lows, highs = [band.low for band in curve.band], [band.high for band in curve.band]
        axes.fill_between(curve.steps, lows, highs, color=BAND, alpha=0.5, linewidth=0)
    for values in curve.oracles:
        axes.plot(curve.steps, values, color=ORACLE, linewidth=0.8)
    axes.axhline(curve.threshold, color=QUIET, linestyle="--", linewidth=1.2)
    original = [point.value for point in curve.original]
    axes.plot(curve.steps, original, color=ORIGINAL, marker="o", markersize=5, fillstyle="none", linestyle=":")
    intervals = [point.interval for point in curve.unlearned]
    axes.vlines(curve.steps, [each.low for each in intervals], [each.high for each in intervals], color=UNLEARNED)
    axes.plot(curve.steps, [point.value for point in curve.unlearned], color=UNLEARNED, marker="o", markersize=5)
    axes.set_title(_capital(curve.name))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("quality")
    axes.set_ylim(-0.03, 1.05)
    axes.grid(visible=True, axis="y")


def _cost(cost: Cost) -> Picture:
    heading = "What it cost"
    took = f"Unlearning took {words.duration(cost.seconds)}"
    if not cost.oracle_seconds:
        return Picture(heading, f"{took}; the oracles were not trained here, so there is nothing to set it beside.")
    seconds = [cost.seconds, *cost.oracle_seconds[:MOST_ORACLES]]
    names = ["unlearning", *(f"oracle {position}" for position in range(1, len(seconds)))]
    figure, axes = rows_figure(len(seconds), 0.32, [])
    colours = [UNLEARNED] + [BAND] * (len(seconds) - 1)
    bars = axes.barh(range(len(seconds)), seconds, 0.65, color=colours, edgecolor=[UNLEARNED, *[ORACLE] * len(names)][: len(names)])
    axes.bar_label(bars, [words.duration(value) for value in seconds], padding=4)
    axes.set_yticks(range(len(seconds)), names)
    axes.set_xlim(0, 1.2 * max(*seconds, 1e-9))
    axes.set_xlabel("seconds of wall time")
    caption = "Bars are wall time on the same machine"
    if cost.share_of_retraining is not None:
        caption = f"{took}, {words.share_of_retraining(cost.share_of_retraining)}; bars are wall time on one machine"
    caption += _rest(len(cost.oracle_seconds) - len(seconds) + 1, "oracles are left out")
    described = "; ".join(f"{name} {words.duration(value)}" for name, value in zip(names, seconds, strict=True))
    return Picture(heading, caption, to_svg(figure, "cost", heading, described))


def _layers(layers: Sequence[LayerDistance]) -> Picture:
    heading = "How far the weights moved"
    if not layers:
        return Picture(heading, "The evidence holds no distances between weights.")

    def deviation(layer: LayerDistance) -> float:
        centre = float(np.mean(layer.oracles)) if layer.oracles else 0.0
        return abs(layer.unlearned - centre)

    shown = _foremost(layers, MOST_LAYERS, deviation)
    legend: list[Artist] = [Line2D([], [], color=UNLEARNED, marker="o", linestyle="none", label="unlearned")]
    legend += [key_oracles()] if any(layer.oracles for layer in shown) else []
    figure, axes = rows_figure(len(shown), 0.26, legend)
    for row, layer in enumerate(shown):
        if layer.oracles:
            axes.hlines(row, min(layer.oracles), max(layer.oracles), color=BAND, linewidth=5, alpha=0.5)
        axes.plot(layer.oracles, [row] * len(layer.oracles), "|", color=ORACLE, markersize=9)
    axes.plot([layer.unlearned for layer in shown], range(len(shown)), "o", color=UNLEARNED, markersize=6)
    axes.set_yticks(range(len(shown)), [label(layer.layer) for layer in shown])
    axes.set_xlim(0)
    axes.set_xlabel("distance from the original / its norm")
    caption = (
        "Oracles start from other random weights and so lie far from the original; a layer of the unlearned model "
        "near zero was hardly touched"
    )
    caption += _rest(len(layers) - len(shown), "layers lie closer to the oracles and are left out")
    described = "; ".join(
        f"{layer.layer}: unlearned {words.number(layer.unlearned)}, oracles {words.mean(layer.oracles)}"
        for layer in shown
    )
    return Picture(heading, caption, to_svg(figure, "layers", heading, described))


def _compare(axes: Axes, row: int, measure: Measure) -> None:
    """One row: the band with its margin, each oracle, the original, and the unlearned model over them."""
    band = measure.band
    if math.isfinite(band.low) and math.isfinite(band.high):
        for extra in (measure.margin, 0.0):
            axes.barh(row, band.high - band.low + 2 * extra, 0.7, band.low - extra, color=BAND, alpha=0.3, linewidth=0)
    axes.plot(measure.oracles, [row] * len(measure.oracles), "|", color=ORACLE, markersize=11)
    if measure.original is not None:
        axes.plot(measure.original.value, row, "o", color=ORIGINAL, fillstyle="none", markersize=8, clip_on=False)
    interval = measure.unlearned.interval
    axes.hlines(row, interval.low, interval.high, color=UNLEARNED, linewidth=2)
    axes.plot(measure.unlearned.value, row, "o", color=UNLEARNED, markersize=6, clip_on=False)


def _comparison_legend(measures: Sequence[Measure]) -> list[Artist]:
    original = [key_original()] if any(measure.original for measure in measures) else []
    return [key_unlearned(), *original, key_band(), key_oracles()]


def _scale(measures: Sequence[Measure]) -> tuple[float, float]:
    """Ends of an axis that holds all that is drawn, with some room."""
    values: list[float] = []
    for measure in measures:
        drawn = [measure.unlearned.interval, measure.band, Interval(low=measure.unlearned.value, high=measure.unlearned.value)]
        drawn += [measure.original.interval] if measure.original else []
        values += [end for each in drawn for end in (each.low, each.high) if math.isfinite(end)]
        values += measure.oracles
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), (_NARROWEST_SCALE - (high - low)) / 2)
    return low - room, high + room


def _foremost(items: Sequence[T], most: int, importance: Callable[[T], object]) -> list[T]:
    """The most important items, in their own order."""
    ranked = sorted(range(len(items)), key=lambda position: importance(items[position]), reverse=True)  # pyright: ignore
    return [items[position] for position in sorted(ranked[:most])]


def _rest(left_out: int, what: str) -> str:
    return f"; {words.count(left_out)} more {what}." if left_out > 0 else "."


def _described(measures: Sequence[Measure]) -> str:
    return "; ".join(
        f"{measure.on}: unlearned {words.estimate(measure.unlearned)}, oracles {words.mean(measure.oracles)}, "
        f"{words.place(measure)}"
        for measure in measures
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
