"""Figures on single examples: who can be told to have been trained on, and how far each is from retraining."""

# pyright: reportUnknownMemberType=false
# Matplotlib's own annotations leave keyword arguments open.

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from expunge.audit.evidence import Evidence, ExampleEpsilons, Membership
from expunge.audit.margins import ExamplePercentiles, MarginDivergence, Percentiles
from expunge.audit.membership import RMIA, U_LIRA
from expunge.report import words
from expunge.report.drawing import (
    BAND,
    ORACLE,
    QUIET,
    UNLEARNED,
    Picture,
    add_legend,
    key_unlearned,
    legend_height,
    new_figure,
    to_svg,
)

NO_SHADOWS = "It takes shadows to tell, as expunge audit --shadows 20 trains them."


def roc_figure(attacks: Sequence[Membership]) -> Picture:
    """True against false positives of the attacks that the verdict rests on."""
    heading = "Can single examples be told?"
    if not attacks:
        return Picture(heading, "Membership of single examples was not attacked.")
    attacks = [attack for attack in attacks if attack.attack in (RMIA, U_LIRA)] or attacks[:1]
    directions = (("members score high", UNLEARNED), ("members score low", ORACLE))
    legend: list[Artist] = [Line2D([], [], color=colour, label=name) for name, colour in directions]
    legend += [Line2D([], [], color=QUIET, linewidth=0.8, linestyle="--", label="guessing")]
    figure = new_figure(0.1 + legend_height(legend) + 2.6)
    add_legend(figure, legend)
    axes = figure.subplots()
    lines: list[str] = []
    for attack, style in zip(attacks, cycle(("-", "--", ":"))):
        result = attack.unlearned
        for curve, (_, colour) in zip((result.above, result.below), directions, strict=True):
            rates = curve.false_positive_rates, curve.true_positive_rates
            axes.plot(*rates, style, color=colour, drawstyle="steps-post")
        areas = words.mean([oracle.auc for oracle in attack.oracles])
        line = f"{words.capital(attack.attack)}: area {words.estimate(result.auc)}, of oracles {areas}"
        if result.epsilon is not None:
            line += (
                f"; epsilon at least {words.number(result.epsilon.lower_bound)}, where so many examples could show "
                f"{words.number(result.epsilon.largest)} at most"
            )
        lines.append(line)
    floor = 0.5 / max(max(each.unlearned.forget_examples, each.unlearned.unseen_examples) for each in attacks)
    axes.plot([floor, 1], [floor, 1], color=QUIET, linewidth=0.8, linestyle="--")
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    axes.set_xlim(floor, 1.05)
    axes.set_ylim(floor, 1.3)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    caption = (
        "An attack that knows the oracles guesses, example by example, who was trained on; a curve above the diagonal "
        f"in either direction is a leak. {'. '.join(lines)}."
    )
    return Picture(heading, caption, to_svg(figure, "membership", heading, "; ".join(lines)))


def distances_figure(evidence: Evidence) -> Picture:
    """Percentiles over forget examples of each distance, beside the oracles' own or what chance gives."""
    heading = "Example by example"
    if not evidence.percentiles:
        return Picture(heading, "With fewer than three oracles nothing can be told of single examples.")
    panels = len(evidence.percentiles) + len(evidence.margins)
    legend: list[Artist] = [key_unlearned()]
    legend.append(Line2D([], [], color=ORACLE, marker="|", markersize=11, linestyle="none", label="each oracle"))
    if evidence.margins:
        legend.append(Line2D([], [], color=QUIET, marker="x", linestyle="none", label="by chance"))
    figure = new_figure(0.1 + legend_height(legend) + 1.25 * panels)
    add_legend(figure, legend)
    all_axes = list(figure.subplots(panels, squeeze=False)[:, 0])
    described: list[str] = []
    for axes, distance in zip(all_axes, evidence.percentiles, strict=False):
        _distance_panel(axes, distance)
        described.append(f"{distance.name}: unlearned {_three(distance.unlearned)}")
    for axes, (name, margins) in zip(all_axes[len(evidence.percentiles) :], evidence.margins.items(), strict=True):
        _margin_panel(axes, name, margins)
        described.append(f"KLoM on {name}: {_three(margins.percentiles)}")
    caption = (
        "Median, 95th and 99th percentile over forget examples: a mean may look right while a few examples are far "
        "from retraining."
    )
    caption += "" if evidence.margins else f" KLoM is left out. {NO_SHADOWS}"
    return Picture(heading, caption, to_svg(figure, "distances", heading, "; ".join(described)))


def epsilons_figure(found: ExampleEpsilons | None) -> Picture:
    """How epsilon is spread over the forget examples."""
    heading = "Epsilon by example"
    if found is None:
        return Picture(heading, f"Epsilon of single examples was not estimated. {NO_SHADOWS}")
    legend: list[Artist] = [
        Patch(facecolor=BAND, edgecolor=ORACLE, label="forget examples"),
        Line2D([], [], color=QUIET, linestyle="--", label="the most that can be seen"),
    ]
    figure = new_figure(0.1 + legend_height(legend) + 2.0)
    add_legend(figure, legend)
    axes = figure.subplots()
    axes.hist(found.estimates, bins=24, range=(0, 1.02 * found.largest), color=BAND, edgecolor=ORACLE)
    axes.axvline(found.largest, color=QUIET, linestyle="--")
    axes.set_xlabel("estimated epsilon")
    axes.set_ylabel("examples")
    bounded = sum(bound > 0 for bound in found.lower_bounds)
    told = (
        f"median {words.number(float(np.median(found.estimates)))}, largest {words.number(max(found.estimates))}; for "
        f"{words.count(bounded)} of {words.count(len(found.estimates), 'example')} it is above 0 with 95 % confidence, "
        "each by itself"
    )
    caption = (
        f"How well {found.unlearned_models} unlearned models can be told from {found.oracle_models} retrained ones by "
        f"one example: {told}. The estimate takes the best of many thresholds and errs upwards; with more models it "
        "errs less and more can be seen."
    )
    return Picture(heading, caption, to_svg(figure, "epsilons", heading, told))


def _distance_panel(axes: Axes, distance: ExamplePercentiles) -> None:
    for row, place in enumerate(zip(*distance.oracles, strict=True)):
        axes.plot(place, [row] * len(place), "|", color=ORACLE, markersize=11)
    _percentiles(axes, distance.unlearned)
    axes.set_title(words.capital(distance.name))


def _margin_panel(axes: Axes, name: str, margins: MarginDivergence) -> None:
    axes.plot(margins.by_chance, range(3), "x", color=QUIET)
    _percentiles(axes, margins.percentiles)
    axes.set_title(f"KLoM on the {name} set, nats")


def _percentiles(axes: Axes, found: Percentiles) -> None:
    for row, estimate in enumerate((found.median, found.percentile_95, found.percentile_99)):
        axes.hlines(row, estimate.interval.low, estimate.interval.high, color=UNLEARNED, linewidth=2)
        axes.plot(estimate.value, row, "o", color=UNLEARNED, markersize=6)
    axes.set_yticks(range(3), ["median", "95 %", "99 %"])
    axes.set_ylim(2.6, -0.6)
    axes.set_xlim(0)
    axes.locator_params(axis="x", nbins=6)


def _three(found: Percentiles) -> str:
    return words.listing([words.number(value) for value in found.values])
