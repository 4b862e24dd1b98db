"""The figures of the page."""

# pyright: reportUnknownMemberType=false
# Matplotlib's own annotations leave keyword arguments open.

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from expunge.audit.evidence import Answers, Cost, Curve, Evidence, LayerDistance
from expunge.report import words
from expunge.report.comparisons import groups_figure, quality_figure
from expunge.report.drawing import (
    BAND,
    LABEL_LENGTH,
    ORACLE,
    ORIGINAL,
    QUIET,
    UNLEARNED,
    Picture,
    add_legend,
    foremost,
    house_style,
    key_band,
    key_oracles,
    label,
    legend_height,
    new_figure,
    rows_figure,
    to_svg,
)
from expunge.report.restorations import restored_pictures
from expunge.report.single_examples import distances_figure, epsilons_figure, roc_figure

MOST_ANSWERS, MOST_LAYERS, MOST_ORACLES = 10, 16, 10


def pictures(evidence: Evidence) -> list[Picture]:
    """All figures in the order of the page."""
    with house_style():
        return [
            *restored_pictures(evidence),
            quality_figure(evidence),
            groups_figure(evidence.groups),
            *([] if evidence.restorations else [_answers(evidence.answers)]),  # pictures have no kinds of answer
            _relearning(evidence.curves),
            _cost(evidence.cost),
            roc_figure(evidence.membership),
            distances_figure(evidence),
            epsilons_figure(evidence.epsilons),
            _layers(evidence.layers),
        ]


def _answers(answers: Answers | None) -> Picture:
    heading = "What is predicted on the forget set"
    if answers is None or not answers.kinds:
        return Picture(heading, "This task has no kinds of answer whose frequency could be shown.")
    oracles = np.asarray(answers.oracles, dtype=float).reshape(-1, len(answers.kinds))
    reference = oracles.mean(0) if len(oracles) else np.asarray(answers.original)
    unlearned = np.asarray([estimate.value for estimate in answers.unlearned])
    rows = foremost(
        range(len(answers.kinds)), MOST_ANSWERS, lambda kind: (abs(float(unlearned[kind] - reference[kind])),)
    )
    series = [("unlearned (95 % interval)", unlearned, UNLEARNED, UNLEARNED)]
    series += [("mean oracle, with range", oracles.mean(0), ORACLE, BAND)] if len(oracles) else []
    series += [("original", np.asarray(answers.original), ORIGINAL, "white")]
    legend = [Patch(edgecolor=edge, facecolor=face, label=name) for name, _, edge, face in series]
    figure, axes = rows_figure(len(rows), 0.42, legend)
    thickness = 0.8 / len(series)
    for place, (name, values, edge, face) in enumerate(series):
        heights = [row - 0.4 + thickness * (place + 0.5) for row in range(len(rows))]
        axes.barh(heights, values[rows], thickness * 0.9, color=face, edgecolor=edge, linewidth=0.8)
        if name.startswith("unlearned"):
            intervals = [answers.unlearned[row].interval for row in rows]
            axes.hlines(heights, [each.low for each in intervals], [each.high for each in intervals], color=ORIGINAL)
        if name.startswith("mean"):
            axes.hlines(heights, oracles.min(0)[rows], oracles.max(0)[rows], color=ORACLE, linewidth=2.5)
    axes.set_yticks(range(len(rows)), [label(answers.kinds[row]) for row in rows])
    axes.set_xlim(0)
    axes.set_xlabel("mean predicted probability")
    caption = (
        "A retrained model spreads the forget set over the answers that remain; a bar of the unlearned model "
        "outside the oracles' range tells that it was not retrained"
    )
    caption += words.left_out(len(answers.kinds) - len(rows), "answers differ less and are left out")
    described = "; ".join(
        f"{answers.kinds[row]}: unlearned {words.estimate(answers.unlearned[row])}, "
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
    axes.set_title(words.capital(curve.name))
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
    edges = [UNLEARNED] + [ORACLE] * (len(seconds) - 1)
    bars = axes.barh(range(len(seconds)), seconds, 0.65, color=colours, edgecolor=edges)
    axes.bar_label(bars, [words.duration(value) for value in seconds], padding=4)
    axes.set_yticks(range(len(seconds)), names)
    axes.set_xlim(0, 1.2 * max(*seconds, 1e-9))
    axes.set_xlabel("seconds of wall time")
    caption = "Bars are wall time on the same machine"
    if cost.share_of_retraining is not None:
        caption = f"{took}, {words.share_of_retraining(cost.share_of_retraining)}; bars are wall time on one machine"
    caption += "; oracles were trained together, and one by itself would have taken so long" if cost.expected else ""
    caption += words.left_out(len(cost.oracle_seconds) - len(seconds) + 1, "oracles are left out")
    described = "; ".join(f"{name} {words.duration(value)}" for name, value in zip(names, seconds, strict=True))
    return Picture(heading, caption, to_svg(figure, "cost", heading, described))


def _layers(layers: Sequence[LayerDistance]) -> Picture:
    heading = "How far the weights moved"
    if not layers:
        return Picture(heading, "The evidence holds no distances between weights.")

    def deviation(layer: LayerDistance) -> tuple[float, ...]:
        centre = float(np.mean(layer.oracles)) if layer.oracles else 0.0
        return (abs(layer.unlearned - centre),)

    shown = foremost(layers, MOST_LAYERS, deviation)
    legend: list[Artist] = [Line2D([], [], color=UNLEARNED, marker="o", linestyle="none", label="unlearned")]
    legend += [key_oracles()] if any(layer.oracles for layer in shown) else []
    figure, axes = rows_figure(len(shown), 0.26, legend)
    for row, layer in enumerate(shown):
        if layer.oracles:
            axes.hlines(row, layer.band.low, layer.band.high, color=BAND, linewidth=5, alpha=0.5)
        axes.plot(layer.oracles, [row] * len(layer.oracles), "|", color=ORACLE, markersize=9)
    axes.plot([layer.unlearned for layer in shown], range(len(shown)), "o", color=UNLEARNED, markersize=6)
    axes.set_yticks(range(len(shown)), _layer_labels([layer.layer for layer in shown]))
    axes.set_xlim(0, 1.08 * max(1e-9, *(max(layer.unlearned, *layer.oracles, 0.0) for layer in shown)))
    axes.set_xlabel("distance from the original / its norm")
    caption = (
        "Oracles start from other random weights and so lie far from the original; a layer of the unlearned model "
        "near zero was hardly touched"
    )
    caption += words.left_out(len(layers) - len(shown), "layers lie closer to the oracles and are left out")
    described = "; ".join(
        f"{layer.layer}: unlearned {words.number(layer.unlearned)}, oracles {words.mean(layer.oracles)}"
        for layer in shown
    )
    return Picture(heading, caption, to_svg(figure, "layers", heading, described))


def _layer_labels(names: Sequence[str]) -> list[str]:
    """Dotted names without the modules that all of them share."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and len({tuple(each[: shared + 1]) for each in parts}) == 1 and len(parts[0]) > shared + 1:
        shared += 1
    return [_layer_label(each[shared:]) for each in parts]


def _layer_label(parts: Sequence[str]) -> str:
    """A dotted name in short: its ends and the numbers in it, which tell layers apart, and as much else as fits."""
    kept = {0, len(parts) - 1} | {place for place, part in enumerate(parts) if part.isdigit()}

    def joined(places: set[int]) -> str:
        ordered = sorted(places)
        gaps = ["" if place == 0 else "." if place - 1 in places else "…" for place in ordered]
        return "".join(gap + parts[place] for gap, place in zip(gaps, ordered, strict=True))

    for place in reversed(range(len(parts))):
        if len(joined(kept | {place})) <= LABEL_LENGTH:
            kept |= {place}
    return label(joined(kept))
