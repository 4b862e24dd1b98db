"""Figures of pictures: the pixels that were given, in order, within the page, and nobody's by accident."""

import base64
import io
import re
from html.parser import HTMLParser
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from expunge.audit import embedding_map
from expunge.audit.embedding_map import MOST_POINTS, embedded, places_of
from expunge.errors import DataError, SettingError, ShapeError
from expunge.report.drawing import Picture
from expunge.report.images import MOST_ROWS, embedding_figure, grid_figure, hidden_input, places_figure

NAMES = ("input", "original", "unlearned", "oracle", "truth")


def columns(count: int = 3, channels: int = 3, height: int = 6, width: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(count, channels, height, width, generator=generator) for name in NAMES}


class Elements(HTMLParser):
    def __init__(self, svg: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(svg)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def pixels(figure: Picture) -> np.ndarray:
    """The one image of a figure, as it is written into the page."""
    assert figure.svg is not None
    images = [attributes for tag, attributes in Elements(figure.svg).found if tag == "image"]
    assert len(images) == 1
    content = re.sub(r"\s", "", images[0]["xlink:href"] or "")
    assert content.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content.split(",", 1)[1]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_stands_in_its_row_and_column(channels: int) -> None:
    shown = columns(channels=channels)
    found = pixels(grid_figure(shown))
    if bool((found[0, 0, :3] != _bytes(shown["input"][0])[0, 0]).any()):
        found = found[::-1]  # the file may be upside down, with a transform that turns it
    gap = 1
    assert found.shape == (3 * 6 + 2 * gap, 5 * 5 + 4 * gap, 4)
    for across, pictures in enumerate(shown.values()):
        for down, picture in enumerate(pictures):
            place = found[down * 7 : down * 7 + 6, across * 6 : across * 6 + 5]
            np.testing.assert_array_equal(place[..., :3], _bytes(picture))
            assert (place[..., 3] == 255).all()
    assert (found[6, :, 3] == 0).all()
    assert (found[:, 5, 3] == 0).all()


def test_a_grid_names_its_columns_and_loads_nothing() -> None:
    figure = grid_figure(columns())
    assert figure.svg is not None
    places = [figure.svg.rindex(f">{name}<") for name in NAMES]
    assert places == sorted(places)
    assert f"3 pictures, none of which was trained on, in 5 columns: {', '.join(NAMES)}" in figure.svg
    references = [
        value or "" for _, attributes in Elements(figure.svg).found for name, value in attributes.items()
        if name.rpartition(":")[2] in {"href", "src"}
    ]  # fmt: skip
    assert references
    assert all(reference.startswith(("#grid-", "data:image/png;base64,")) for reference in references)
    assert grid_figure(columns()) == figure


def test_only_the_first_rows_are_shown() -> None:
    assert pixels(grid_figure(columns(20))).shape[0] == MOST_ROWS * 7 - 1


def test_pictures_that_were_trained_on_are_shown_only_on_demand() -> None:
    for shows in ("forget", "retain"):
        with pytest.raises(SettingError, match=f"pictures of the {shows} set may be personal data.*personal_data=True"):
            grid_figure(columns(), shows=cast(Any, shows))
        assert (
            f"all of them of the {shows} set"
            in grid_figure(columns(), shows=cast(Any, shows), personal_data=True).caption
        )
    assert "none of which was trained on" in grid_figure(columns()).caption
    assert grid_figure({}) == Picture("What the models restore", "No pictures are shown.")
    with pytest.raises(SettingError, match="shows must be one of holdout, forget, retain, not 'all'"):
        grid_figure(columns(), shows=cast(Any, "all"))


def test_what_makes_no_grid_is_refused() -> None:
    with pytest.raises(ShapeError, match="make no grid"):
        grid_figure(columns() | {"truth": torch.rand(2, 3, 6, 5)})
    with pytest.raises(ShapeError, match="make no grid"):
        grid_figure({"truth": torch.rand(2, 4, 6, 5)})
    with pytest.raises(DataError, match="NaN or infinity"):
        grid_figure(columns() | {"truth": torch.full((3, 3, 6, 5), torch.nan)})
    assert (pixels(grid_figure({"truth": torch.full((1, 1, 4, 4), 7.0)}))[..., :3] == 255).all()


def test_what_is_hidden_is_grey() -> None:
    truth, mask = torch.rand(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[1, 0, 2, 3] = True
    found = hidden_input(truth, mask)
    assert found[1, :, 2, 3].tolist() == [0.5, 0.5, 0.5]
    assert torch.equal(found[0], truth[0])


def clouds(count: int = 40, apart: float = 30.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(count, 6, generator=generator) + apart * place
        for place, name in enumerate(("unlearned", "oracle"))
    }


def test_groups_that_lie_apart_stay_apart() -> None:
    found = embedded(clouds(), seed=1)
    assert {name: points.shape for name, points in found.items()} == {"unlearned": (40, 2), "oracle": (40, 2)}
    points = np.concatenate(list(found.values()))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(80)
    assert ((distances.argmin(1) < 40) == (np.arange(80) < 40)).all()  # the nearest neighbour is of one's own group
    again = embedded(clouds(), seed=1)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def test_many_points_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_map, "MOST_POINTS", 30)
    found = embedded(clouds() | {"truth": torch.randn(20, 6)})
    assert [len(points) for points in found.values()] == [12, 12, 6]
    assert MOST_POINTS == 1500


def test_a_figure_of_embeddings_tells_its_groups() -> None:
    figure = embedding_figure(clouds(8), name="tsne")
    assert figure.svg is not None
    assert "unlearned 8 pictures; oracle 8 pictures" in figure.svg
    assert "mean nothing (t-SNE)" in figure.caption.replace("  ", " ")
    assert {"#d55e00", "#0072b2"} <= set(re.findall(r"#[0-9a-f]{6}", figure.svg))


def test_embeddings_that_cannot_be_placed_are_refused() -> None:
    with pytest.raises(ShapeError, match="use one network"):
        embedded({"one": torch.rand(20, 3), "other": torch.rand(20, 4)})
    with pytest.raises(DataError, match="9 pictures show no neighbourhoods; give 10 at least"):
        embedded({"one": torch.rand(9, 3)})
    with pytest.raises(DataError, match="NaN or infinity"):
        embedded({"one": torch.full((20, 3), torch.inf)})
    with pytest.raises(DataError, match="all embeddings are the same"):
        embedded({"one": torch.ones(20, 3)})


def test_models_have_a_panel_each_in_one_plane() -> None:
    models = {name: clouds(8)["unlearned"] for name in ("original", "unlearned", "oracle")}
    far = {name: table + 30 for name, table in models.items()}
    found = places_of({"holdout": models, "holdout, forgotten kind": far}, "pixels", 0)
    assert found is not None
    assert {each: [len(points) for points in places.values()] for each, places in found.places.items()} == {
        "holdout": [8, 8, 8],
        "holdout, forgotten kind": [8, 8, 8],
    }
    figure = places_figure(found)
    assert figure.svg is not None
    assert all(f">{name}<" in figure.svg for name in models)
    assert "holdout 8 pictures; holdout, forgotten kind 8 pictures" in figure.caption
    assert "by pixels" in figure.caption
    assert {"#d55e00", "#0072b2"} <= set(re.findall(r"#[0-9a-f]{6}", figure.svg))
    assert places_figure(found) == figure


def test_what_shows_no_neighbourhoods_is_not_placed() -> None:
    assert places_of({}, "pixels", 0) is None
    assert places_of({"holdout": {"oracle": torch.rand(9, 3)}}, "pixels", 0) is None
    assert places_of({"holdout": {"oracle": torch.ones(20, 3)}}, "pixels", 0) is None


def _bytes(picture: Tensor) -> np.ndarray:
    return (picture.expand(3, -1, -1) * 255).round().byte().movedim(0, -1).numpy()
