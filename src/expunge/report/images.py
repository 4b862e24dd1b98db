"""Figures of what image-to-image models restore: a grid of pictures, and where their embeddings lie.

Pictures of people are personal data, and those of the forget set are what was to be forgotten. So a grid shows holdout
pictures unless the caller says otherwise, and a report that shows forget or retain examples is to be kept like the
data. Nothing here is called for a page by default.
"""

# pyright: reportUnknownMemberType=false
# Matplotlib's own annotations leave keyword arguments open.

from collections.abc import Mapping
from itertools import cycle
from typing import get_args

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from expunge.audit.embedding_map import embedded
from expunge.audit.image_figures import FORGOTTEN, EmbeddingPlaces, Shown
from expunge.errors import DataError, SettingError, ShapeError
from expunge.report.drawing import (
    ORACLE,
    ORIGINAL,
    QUIET,
    UNLEARNED,
    WIDTH,
    Picture,
    add_legend,
    house_style,
    label,
    legend_height,
    new_figure,
    to_svg,
)

MOST_ROWS = 8

_HIDDEN = 0.5  # grey
_GAP = 0.08  # of the side of a picture
_COLOURS = {"unlearned": UNLEARNED, "original": ORIGINAL, "oracle": ORACLE, "oracles": ORACLE, "truth": QUIET}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")  # of the same palette
_LIGHT = "#b5b5b5"
_MARKERS = "os^Dv*Pd"


def hidden_input(truth: Tensor, mask: Tensor) -> Tensor:
    """What a model was given: grey where something is hidden.

    Args:
        truth: (pictures, channels, height, width) in [0, 1].
        mask: (pictures, 1, height, width) bool, True where hidden.
    """
    return truth.masked_fill(mask, _HIDDEN)


def grid_figure(
    columns: Mapping[str, Tensor], *, shows: Shown = "holdout", personal_data: bool = False, name: str = "grid"
) -> Picture:
    """Pictures side by side, a row an example: input, what each model makes of it, and the truth.

    Args:
        columns: Pictures by heading, as in `input`, `original`, `unlearned`, `oracle`, `truth`: (pictures, channels,
            height, width) each, in the same order; values outside of [0, 1] are cut off. The first eight are shown. If
            there is no column, the figure says that nothing is shown.
        shows: Whose examples they are. `holdout` ones were never trained on; choose those of the forgotten kind.
        personal_data: That examples of the forget or the retain set may be shown, which makes the report as much in
            need of protection as the data: it must be deleted with them.
        name: Prefix of ids, different for each figure of a page.

    Raises:
        SettingError: Examples that were trained on are to be shown without `personal_data`.
        ShapeError: The columns do not show equally many pictures of one shape.
        DataError: A picture holds NaN or infinity.
    """
    heading = "What the models restore"
    if shows not in get_args(Shown):
        raise SettingError(f"shows must be one of {', '.join(get_args(Shown))}, not {shows!r}")
    if not columns:
        return Picture(heading, "No pictures are shown.")
    if shows != "holdout" and not personal_data:
        raise SettingError(
            f"pictures of the {shows} set may be personal data, and would stay in the report after the set is deleted; "
            "show holdout pictures of the same kind, or pass `personal_data=True` and keep the report like the data"
        )
    pixels = _assembled(columns)
    rows = min(MOST_ROWS, len(next(iter(columns.values()))))
    with house_style():
        figure = new_figure(WIDTH * pixels.shape[0] / pixels.shape[1] + 0.3)
        axes = figure.add_subplot()
        axes.imshow(pixels, interpolation="none", aspect="equal")
        cell = (pixels.shape[1] + _gap(columns)) / len(columns)
        middles = [cell * (place + 0.5) - _gap(columns) / 2 - 0.5 for place in range(len(columns))]
        axes.set_xticks(middles, [label(column) for column in columns])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks([])
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        whose = {
            "holdout": "none of which was trained on",
            "forget": "all of them of the forget set",
            "retain": "all of them of the retain set",
        }[shows]
        caption = (
            f"A row is a picture, {whose}. A retrained model fills in forgotten kinds too, from what it knows of the "
            "others: noise or a flat colour where the oracle draws something tells that something was forgotten."
        )
        described = f"{rows} pictures, {whose}, in {len(columns)} columns: {', '.join(columns)}"
        return Picture(heading, caption, to_svg(figure, name, heading, described))


def embedding_figure(embeddings: Mapping[str, Tensor], *, seed: int = 0, name: str = "embeddings") -> Picture:
    """Embeddings of pictures in a plane by t-SNE, one colour and shape a model or kind.

    Source of the method: van der Maaten and Hinton 2008, *Visualizing Data using t-SNE* (JMLR 9); of its use here: Li
    et al. 2024 (arXiv 2402.00351). A point stands for one example; where single people can be told by their place, the
    figure is personal data.

    Args:
        embeddings: (pictures, features) by name, as `FeatureNetwork.embed` gives them; of more than 1,500 in all an
            even part is drawn.
        seed: Of the optimisation.
        name: Prefix of ids, different for each figure of a page.

    Raises:
        ShapeError: The tables have different numbers of features.
        DataError: There are fewer than ten pictures, or a feature is NaN or infinite.
    """
    heading = "Where the embeddings lie"
    places = embedded(embeddings, seed=seed)
    others = cycle(_OTHER_COLOURS)
    colours = {each: _COLOURS.get(each.lower()) or next(others) for each in places}
    markers = dict(zip(places, cycle(_MARKERS), strict=False))
    legend: list[Artist] = [
        Line2D([], [], color=colours[each], marker=markers[each], linestyle="none", label=label(each))
        for each in places
    ]
    with house_style():
        figure = new_figure(0.1 + legend_height(legend) + 3.2)
        add_legend(figure, legend)
        axes = figure.add_subplot()
        for each, points in places.items():
            axes.plot(*points.T, markers[each], color=colours[each], markersize=3.5, alpha=0.6, markeredgewidth=0)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
        counts = "; ".join(f"{each} {len(points)} pictures" for each, points in places.items())
        caption = (
            "Neighbours in the space of features are neighbours here; distances between groups and their sizes mean "
            f"nothing (t-SNE). Shown: {counts}."
        )
        return Picture(heading, caption, to_svg(figure, name, heading, counts))


def places_figure(found: EmbeddingPlaces, name: str = "places") -> Picture:
    """Where the outputs of each model lie among those of the others, a panel a model in one and the same plane.

    What is to be forgotten is drawn in the colour of the model, everything else in grey.

    Args:
        found: The places, as evidence keeps them.
        name: Prefix of ids, different for each figure of a page.
    """
    heading = "Where the restored pictures lie"
    sets = sorted(found.places, key=lambda each: each in FORGOTTEN)  # what is to be forgotten lies on top
    markers = dict(zip(sets, _MARKERS, strict=False))
    models = list(found.places[sets[0]])
    legend: list[Artist] = [
        Line2D([], [], color=QUIET if each in FORGOTTEN else _LIGHT, marker=marker, linestyle="none", label=each)
        for each, marker in markers.items()
    ]
    with house_style():
        figure = new_figure(0.3 + legend_height(legend) + WIDTH / len(models))
        add_legend(figure, legend)
        panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            for each, marker in markers.items():
                colour = _COLOURS.get(model, QUIET) if each in FORGOTTEN else _LIGHT
                points = np.asarray(found.places[each][model]).T
                axes.plot(*points, marker, color=colour, markersize=3, alpha=0.7, markeredgewidth=0)
            axes.set_title(model)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
        counts = "; ".join(f"{each} {len(found.places[each][models[0]])} pictures" for each in sets)
        caption = (
            f"Features of what each model restores, by {found.feature_network}, brought into one plane by t-SNE. "
            "Those of what is to be forgotten, in colour, should lie among the others as those of the oracle do. "
            f"Distances between groups and their sizes mean nothing. Shown: {counts}."
        )
        return Picture(heading, caption, to_svg(figure, name, heading, counts))


def _assembled(columns: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """(height, width, 4) of all pictures with clear gaps between them."""
    shapes = {tuple(pictures.shape) for pictures in columns.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 4 or shape[1] not in (1, 3) or not shape[0]:
        raise ShapeError(
            f"columns of shapes {', '.join(map(str, sorted(shapes)))} make no grid; give (pictures, channels, height, "
            "width) of equally many pictures, with 1 or 3 channels"
        )
    gap, count = _gap(columns), min(MOST_ROWS, shape[0])
    height, width = shape[2] + gap, shape[3] + gap
    canvas = np.zeros((count * height - gap, len(columns) * width - gap, 4), dtype=np.uint8)
    for across, pictures in enumerate(columns.values()):
        shown = pictures[:count].float().cpu()
        if not bool(torch.isfinite(shown).all()):
            raise DataError("a picture holds NaN or infinity; the model diverged")
        pixels = (shown.clamp(0, 1).expand(-1, 3, -1, -1) * 255).round().byte().movedim(1, -1).numpy()
        for down, picture in enumerate(pixels):
            place = canvas[down * height : down * height + shape[2], across * width : across * width + shape[3]]
            place[..., :3], place[..., 3] = picture, 255
    return canvas


def _gap(columns: Mapping[str, Tensor]) -> int:
    return max(1, round(_GAP * next(iter(columns.values())).shape[-1]))
