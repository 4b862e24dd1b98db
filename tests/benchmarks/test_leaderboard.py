"""The leaderboard: its page says what its results say, and its smallest size runs and goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

RESULTS = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("classifiers-*-quick.json"))


def cell(gap: float, **values: float) -> dict[str, Any]:
    return {
        "gap": gap, "verdict": "residual influence", "values": values, "deviating": {}, "multiple": 4.0,
        "share of a retrain": 0.1,
    }  # fmt: skip


@pytest.mark.skipif(not RESULTS, reason="the leaderboard has not been computed")
def test_the_committed_page_is_that_of_the_committed_results() -> None:
    import _board_page
    from _board_data import BOARDS

    cells = {name: cell for file in RESULTS for name, cell in json.loads(file.read_text())["cells"].items()}

    assert _board_page.PAGE.read_text() == _board_page.page(cells, BOARDS["quick"])


def test_the_nearest_method_stands_first_and_deviations_are_marked() -> None:
    import _board_page
    from _board_data import BOARDS, Request
    from _board_methods import key

    board = replace(BOARDS["smoke"], seeds=(10, 11))
    request = Request("digits", "whole class", "confirmation")
    measures = {"accuracy, forget": {"oracles": [0.0, 0.1, 0.2], "detectable": 0.3}}
    known = {"gaps": [0.5, 0.7], "measures": measures, "seconds": [1.0], "forget rows": 40, "retain rows": 360}
    cells: dict[str, Any] = {f"{request.title} · oracles": known}
    for seed in board.seeds:
        far = cell(9.0, **{"accuracy, forget": 0.9}) | {"deviating": {"accuracy, forget": "above"}}
        near = cell(2.0 + seed - 10, **{"accuracy, forget": 0.1})
        cells |= {f"{key(request, 'SSD', 0.2)} · seed {seed}": far, f"{key(request, 'EUK', 0.2)} · seed {seed}": near}

    lines = _board_page.page(cells, board).splitlines()

    rows = [line for line in lines if line.startswith("| `") and "residual influence" in line]
    assert [row.split("`")[1] for row in rows] == ["EUK", "SSD"]
    assert "2.50 ±" in rows[0]
    assert " 0.100 |" in rows[0]
    assert " 0.900† |" in rows[1]
    assert any(line.startswith("| *found with 80 % power* |") and "0.300" in line for line in lines)


def test_every_method_for_classifiers_has_a_row_or_a_reason() -> None:
    import expunge.methods
    from _board_methods import ABSENT, ENTRIES
    from expunge import Classification

    methods = (getattr(expunge.methods, name) for name in expunge.methods.__all__)
    ours = [each for each in methods if isinstance(each, type) and issubclass(each, expunge.methods.Method)]
    suited = {each.__name__ for each in ours if any(issubclass(Classification, task) for task in each.tasks)}
    listed = {*ENTRIES, *(name for names in ABSENT for name in names.split(", "))}

    assert suited - {"Method", "Retrain"} <= listed


def test_a_method_that_diverged_on_an_original_comes_last_and_is_not_drawn() -> None:
    import _board_page
    from _board_data import BOARDS, Request
    from _board_methods import key

    board = replace(BOARDS["smoke"], seeds=(10, 11))
    request = Request("digits", "whole class", "confirmation")
    known = {"gaps": [0.5, 0.7], "measures": {}, "seconds": [1.0], "forget rows": 40, "retain rows": 360}
    gaps = {"SSD": (9.0, 9.0), "EUK": (1.0, None), "MSG": (None, None)}
    cells: dict[str, Any] = {f"{request.title} · oracles": known}
    for name, each in gaps.items():
        for seed, gap in zip(board.seeds, each, strict=True):
            cells[f"{key(request, name, 0.2)} · seed {seed}"] = {"gap": None} if gap is None else cell(gap)

    lines = _board_page.page(cells, board).splitlines()

    assert [line for line in lines if line.endswith(("| 9.00 |", "| diverged |")) and "mean rank" not in line][:3] == [
        "| `SSD` | 1.0 | 9.00 |",
        "| `EUK` | 2.0 | diverged |",
        "| `MSG` | 2.0 | diverged |",
    ]
    (euk,) = (line for line in lines if line.startswith("| `EUK` | 1 |"))
    assert euk.endswith("| residual influence 1, diverged 1 |")
    panel = _board_page.draw(cells, board).axes[0]
    drawn = [line for line in panel.lines if line.get_marker() != "None"]
    assert [line.get_ydata().tolist() for line in drawn] == [[9.0]]


def test_no_digit_that_is_trained_on_is_held_out() -> None:
    import recommending
    from _board_data import BOARDS, corpus

    for board in (BOARDS["smoke"], recommending.BOARD):
        data = corpus("digits", board)
        shown, kept = ({bytes(picture.numpy()) for picture in part.tensors[0]} for part in (data.train, data.holdout))
        assert len(data.train) == board.rows
        assert len(data.holdout) >= 397
        assert not shown & kept


@pytest.mark.slow
def test_the_smallest_size_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import _board
    import _board_data
    import _board_methods
    import _results
    import classifiers

    monkeypatch.setattr(_results, "FOLDER", tmp_path)
    monkeypatch.setattr(_board_data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(_board, "CACHE", tmp_path / "cache")
    chosen = {name: _board_methods.ENTRIES[name] for name in ("EUK", "bias sham")}
    monkeypatch.setattr(_board_methods, "ENTRIES", chosen)
    monkeypatch.setattr(_board_data, "kinds", lambda _: ("whole class", "most memorised rows"))

    classifiers.main(["--size", "smoke"])
    first = capsys.readouterr().out
    classifiers.main(["--size", "smoke"])
    second = capsys.readouterr().out

    assert "digits · most memorised rows · confirmation · EUK · 20% · KLoM" in first
    assert "### digits, whole class, 20%" in first
    assert first.endswith(second)
    assert "gap" not in second.split("#")[0]
