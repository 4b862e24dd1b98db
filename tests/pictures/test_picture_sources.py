"""Folders, Hugging Face datasets and archives of pictures: read lazily, checked first, and forgotten by a column."""

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from expunge import Classification, FineTune, Problem, Stage, split, unlearn
from expunge.data import column, has_columns
from expunge.errors import (
    DataError,
    ForgetSetError,
    LabelError,
    ShapeError,
    SourceError,
    UnreadablePicturesError,
)
from expunge.hugging_face import load_split
from expunge.networks import small_cnn
from expunge.pictures import Fitting, Pictures, listed_files, read_folder, read_hugging_face, read_npz
from expunge.training import Run, over_batches

REAL = pytest.mark.skipif(
    "EXPUNGE_DATA_DIR" not in os.environ, reason="set EXPUNGE_DATA_DIR to the folder of real data"
)
SMALL = Fitting(8)


def picture(number: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    random = np.random.default_rng(number)
    return Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def save(folder: Path, files: dict[str, int]) -> Path:
    """So many pictures in each sub-folder."""
    for place, count in files.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(number).save(folder / place / f"{number}.png")
    return folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return save(tmp_path / "faces", {"ann/home": 2, "ann/office": 1, "bob/home": 3, "cem/office": 2})


def shown(data: Pictures) -> dict[str, int]:
    names = column(data, "class").tolist()
    return {name: names.count(name) for name in data.names}


def test_a_folder_of_classes(tmp_path: Path) -> None:
    data = read_folder(save(tmp_path / "pets", {"cat": 3, "dog": 2, "emu": 1}), SMALL)
    assert len(data) == 6
    assert data.names == ("cat", "dog", "emu")
    assert column(data, "label").tolist() == [0, 0, 0, 1, 1, 2]
    assert column(data, "file").tolist()[2:4] == ["cat/2.png", "dog/0.png"]
    example = data[4]
    assert example["label"] == 1
    expected = torch.from_numpy(np.asarray(picture(1)).copy()).movedim(-1, 0) / 255
    assert torch.equal(example["image"], expected)
    assert torch.equal(data[-2]["image"], expected)
    with pytest.raises(IndexError, match="6 pictures, none with the position 6"):
        data[6]


def test_nested_classes_and_splits(tmp_path: Path) -> None:
    root = save(
        tmp_path / "places",
        {"train/a/airfield": 2, "train/h/house/indoor": 1, "train/h/house/outdoor": 2, "val/a/airfield": 1},
    )
    (root / "train" / "a" / "airfield" / "notes.txt").write_text("no picture")
    save(root, {"train/.trash/cat": 1, "train/__pycache__/cat": 1})
    train, holdout = read_folder(root, SMALL), read_folder(root, SMALL, split="validation")
    assert train.names == holdout.names == ("a/airfield", "h/house/indoor", "h/house/outdoor")
    assert shown(train) == {"a/airfield": 2, "h/house/indoor": 1, "h/house/outdoor": 2}
    assert shown(holdout) == {"a/airfield": 1, "h/house/indoor": 0, "h/house/outdoor": 0}
    assert column(holdout, "file").tolist() == ["val/a/airfield/0.png"]
    with pytest.raises(SourceError, match="has no split 'test'; it has train, validation"):
        read_folder(root, SMALL, split="test")


def test_forgetting_by_class_by_person_and_by_file(people: Path, tmp_path: Path) -> None:
    data = read_folder(people, SMALL, levels={"person": 0, "place": 1})
    assert split(data, classes=[0]).indices.tolist() == [0, 1]
    assert split(data, column_is=("class", ["bob/home"])).indices.tolist() == [3, 4, 5]
    assert split(data, column_is=("person", ["ann"])).indices.tolist() == [0, 1, 2]
    assert split(data, column_is=("place", ["office"])).indices.tolist() == [2, 6, 7]
    (tmp_path / "list.txt").write_text(f"ann/office/0.png\n\n{people / 'cem' / 'office' / '1.png'}\n", encoding="utf-8")
    wanted = listed_files(tmp_path / "list.txt", people)
    assert split(data, column_is=("file", wanted)).indices.tolist() == [2, 7]
    assert data[0].items() >= {"label": 0, "person": "ann", "place": "home"}.items()
    with pytest.raises(ForgetSetError, match=r"1 of the 2 values asked for do not occur of field 'file'") as failure:
        split(data, column_is=("file", ["ann/office/0.png", "secret.png"]))
    assert "secret" not in str(failure.value)


def test_lists_that_cannot_be_used(people: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("ann/home/0.png\n../other/secret.png\n")
    with pytest.raises(ForgetSetError, match=r"1 lines of .* outside of .*faces; the first is line 2") as failure:
        listed_files(path, people)
    assert "secret" not in str(failure.value)
    path.write_text("\n")
    with pytest.raises(ForgetSetError, match="lists no file"):
        listed_files(path, people)
    with pytest.raises(SourceError, match="cannot be read as UTF-8"):
        listed_files(tmp_path / "none.txt", people)


def test_a_level_must_be_there(people: Path) -> None:
    with pytest.raises(SourceError, match=r"'camera' is to be folder 2, counted from 0, above each picture; .* 2 only"):
        read_folder(people, SMALL, levels={"camera": 2})


def test_loose_and_missing_pictures_are_refused(people: Path, tmp_path: Path) -> None:
    picture(0).save(people / "loose.png")
    with pytest.raises(SourceError, match=r"1 images lie right in .*faces and not in a sub-folder"):
        read_folder(people, SMALL)
    with pytest.raises(SourceError, match="holds no images for the split 'train'"):
        read_folder(save(tmp_path / "empty", {"cat": 0}), SMALL)
    with pytest.raises(SourceError, match="there is no folder"):
        read_folder(tmp_path / "nowhere", SMALL)


def damage(root: Path, count: int) -> None:
    files = sorted(root.rglob("*.png"))
    for number, file in enumerate(files[:count]):
        content = file.read_bytes()
        broken = [content[: len(content) // 2], b"", b"no picture", content[:20] + b"\x00" * 40]
        file.write_bytes(broken[number % 4])


def test_damaged_files_are_all_listed_before_training(tmp_path: Path) -> None:
    root = save(tmp_path / "pets", {"cat": 6, "dog": 9})
    damage(root, 13)
    with pytest.raises(UnreadablePicturesError, match=r"13 of 15 images cannot be read: cat/0\.png") as failure:
        read_folder(root, SMALL)
    assert len(failure.value.files) == 13
    assert "and 3 more; restore them" in str(failure.value)
    assert str(tmp_path) not in str(failure.value)
    copied = pickle.loads(pickle.dumps(failure.value))  # as an error of a background worker comes back
    assert (str(copied), copied.files) == (str(failure.value), failure.value.files)
    unchecked = read_folder(root, SMALL, check=False)
    assert unchecked[14]["label"] == 1
    with pytest.raises(UnreadablePicturesError, match=r"1 of 15 images cannot be read: dog/0.png \("):
        unchecked[6]


def test_a_picture_that_would_fill_memory_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save(tmp_path / "pets", {"cat": 1})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadablePicturesError, match="decompression bomb"):
        read_folder(root, SMALL)


def test_pictures_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    root = save(tmp_path / "pets", {"cat": 2})
    picture(7, (9, 4)).save(root / "cat" / "wide.png")
    with pytest.raises(ShapeError, match=r"2 sizes, from \(4, 9\) to \(8, 8\); give a size"):
        read_folder(root, Fitting())
    assert {tuple(example["image"].shape) for example in read_folder(root, Fitting((4, 6)))} == {(3, 4, 6)}


def test_pictures_are_decoded_when_they_are_asked_for(people: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    decode = Image.open

    def counting(file: Any) -> Image.Image:
        opened.append(Path(file).name)
        return decode(file)

    monkeypatch.setattr(Image, "open", counting)
    data = read_folder(people, SMALL, levels={"person": 0}, check=False)
    parts = split(data, column_is=("person", ["bob"]))
    assert has_columns(parts.retain)
    assert column(parts.retain, "label").tolist() == [0, 0, 1, 3, 3]
    assert Classification(4).labels_of(parts.forget) is not None
    assert opened == ["0.png"]  # one example, to find out how its fields are called
    parts.forget[2]
    assert opened == ["0.png", "2.png"]
    read_folder(people, SMALL)
    assert len(opened) == 2 + len(data)


def test_small_sets_fit_in_memory(people: Path) -> None:
    data = read_folder(people, Fitting((5, 7)), levels={"person": 0})
    images, labels = data.in_memory().tensors
    assert images.shape == (8, 3, 5, 7)
    assert all(torch.equal(images[place], data[place]["image"]) for place in range(8))
    assert labels.tolist() == data.labels.tolist()
    damage(people, 1)
    with pytest.raises(UnreadablePicturesError, match="1 of 8"):
        data.in_memory()


def test_a_person_leaves_a_model_trained_on_files(people: Path) -> None:
    data = read_folder(people, SMALL, levels={"person": 0})
    data = pickle.loads(pickle.dumps(data))  # as workers and fleets get it
    parts = split(data, column_is=("person", ["bob"]))
    problem = Problem(small_cnn(3, 4, 4), Classification(4), parts.forget, parts.retain)
    result = unlearn(problem, FineTune((Stage(1e-3, steps=2),)), execution=tiny.QUIET)
    assert result.record.data["forget"].examples == 3
    assert result.record.phases[0].steps == 2


def test_a_classifier_reads_them(people: Path) -> None:
    data, task = read_folder(people, SMALL), Classification(4)
    run = Run(task, execution=tiny.QUIET)
    logits = torch.cat(over_batches(run, small_cnn(3, 4, 4), data, task.outputs, 3))
    assert logits.shape == (8, 4)


def test_bad_columns_and_labels_are_refused(people: Path) -> None:
    data = read_folder(people, SMALL, check=False)
    with pytest.raises(DataError, match="no column 'image' that is known without decoding; they have label, class"):
        column(data, "image")
    with pytest.raises(DataError, match=r"the column 'person' has shape \(2,\) for 8 pictures"):
        Pictures(data.stored, SMALL, data.labels, data.names, {"person": np.array(["a", "b"])})
    with pytest.raises(DataError, match="cannot be called file"):
        Pictures(data.stored, SMALL, data.labels, data.names, {"file": data.labels})
    with pytest.raises(LabelError, match="2 of 8 labels are not among the 3 classes"):
        Pictures(data.stored, SMALL, data.labels, data.names[:3])


@pytest.mark.parametrize("layout", ["grey", "channel first", "colour", "colour first", "floats", "alpha"])
def test_arrays_in_every_layout(layout: str, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (5, 7, 6), dtype=np.uint8)
    colour = np.stack([grey, 255 - grey, grey // 2], -1)
    arrays = {
        "grey": grey,
        "channel first": grey[:, None],
        "colour": colour,
        "colour first": np.moveaxis(colour, -1, 1),
        "floats": grey / 255,
        "alpha": np.concatenate([colour, np.full_like(grey, 255)[..., None]], -1),
    }
    np.savez(tmp_path / "a.npz", pictures=arrays[layout], kind=[1, 0, 1, 2, 0], subject=list("abcab"))
    channels = 3 if layout in {"colour", "colour first", "alpha"} else 1
    data = read_npz(
        tmp_path / "a.npz", Fitting(channels=channels), images="pictures", labels="kind", columns={"person": "subject"}
    )
    expected = np.moveaxis(colour, -1, 1) if channels == 3 else grey[:, None]
    assert torch.equal(
        torch.stack([example["image"] for example in data]), torch.from_numpy(expected / np.float32(255))
    )
    assert [example["label"] for example in data] == [1, 0, 1, 2, 0]
    assert split(data, column_is=("person", ["b"])).indices.tolist() == [1, 4]


def test_people_are_classes_and_a_holdout_shares_their_numbers(tmp_path: Path) -> None:
    pictures = np.zeros((4, 3, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", x=pictures, subject=["zoe", "ann", "bob", "ann"])
    np.savez(tmp_path / "test.npz", x=pictures[:2], subject=["zoe", "bob"])
    train = read_npz(tmp_path / "train.npz", Fitting(), labels="subject")
    assert (train.names, train.labels.tolist()) == (("ann", "bob", "zoe"), [2, 0, 1, 0])
    holdout = read_npz(tmp_path / "test.npz", Fitting(), labels="subject", names=train.names)
    assert holdout.labels.tolist() == [2, 1]
    with pytest.raises(LabelError, match="1 of 2 labels are not among the 2 classes"):
        read_npz(tmp_path / "test.npz", Fitting(), labels="subject", names=["ann", "bob"])


def test_whole_numbers_from_zero_stay_what_they_are(tmp_path: Path) -> None:
    pictures = np.zeros((4, 3, 3), dtype=np.uint8)
    for labels, numbers, names in (
        ([0, 3, 1, 3], [0, 3, 1, 3], ("0", "1", "2", "3")),
        ([1, 3, 10, 3], [0, 1, 2, 1], ("1", "3", "10")),
    ):
        np.savez(tmp_path / "a.npz", x=pictures, y=labels)
        data = read_npz(tmp_path / "a.npz", Fitting())
        assert (data.labels.tolist(), data.names) == (numbers, names)


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"x": np.zeros((2, 3, 3), np.uint8)}, SourceError, "has no array y; it has x"),
        ({"x": np.zeros((2, 9), np.uint8), "y": [0, 1]}, ShapeError, r"shape \(2, 9\) is not told to hold pictures"),
        ({"x": np.zeros((2, 3, 9, 4), np.uint8), "y": [0, 1]}, ShapeError, r"channels either before or after"),
        ({"x": np.zeros((2, 3, 3), np.int64), "y": [0, 1]}, ShapeError, "type int64 must lie in"),
        ({"x": np.full((2, 3, 3), 1.5), "y": [0, 1]}, ShapeError, "type float64 must lie in"),
        ({"x": np.full((2, 3, 3), np.nan), "y": [0, 1]}, ShapeError, "must lie in"),
        ({"x": np.zeros((2, 3, 3), np.uint8), "y": [0, 1, 1]}, DataError, "'label' has shape"),
        ({"x": np.zeros((2, 3, 3), np.uint8), "y": [0.5, 1]}, LabelError, "type float64"),
        ({"x": np.zeros((0, 3, 3), np.uint8), "y": np.zeros(0, np.int64)}, DataError, "there are no pictures"),
        ({"x": np.array([{}, {}]), "y": [0, 1]}, SourceError, "never unpickled"),
    ],
)
def test_archives_that_cannot_be_used(arrays: dict[str, Any], error: type, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(error, match=words):
        read_npz(tmp_path / "a.npz", Fitting())


def table(count: int = 6) -> hf.Dataset:
    features = hf.Features(
        {"img": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"]), "person": hf.Value("string")}
    )
    rows = {
        "img": [picture(number) for number in range(count)],
        "label": [number % 2 for number in range(count)],
        "person": [f"p{number % 3}" for number in range(count)],
    }
    return hf.Dataset.from_dict(rows, features=features)


def test_a_hugging_face_dataset() -> None:
    data = read_hugging_face(table(), SMALL, columns=["person"])
    assert data.names == ("cat", "dog")
    assert torch.equal(data[3]["image"], SMALL.tensor(picture(3)))
    assert split(data, column_is=("person", ["p1"])).indices.tolist() == [1, 4]
    assert column(read_hugging_face(table().select([5, 0]), SMALL), "label").tolist() == [1, 0]
    by_person = read_hugging_face(table(), SMALL, label="person")
    assert (by_person.names, by_person.labels.tolist()) == (("p0", "p1", "p2"), [0, 1, 2, 0, 1, 2])
    swapped = read_hugging_face(table(), SMALL, names=["dog", "cat", "emu"])
    assert swapped.labels.tolist() == [1, 0, 1, 0, 1, 0]


def test_hugging_face_datasets_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="no column of pictures found among label, person"):
        read_hugging_face(table().remove_columns(["img"]), SMALL)
    with pytest.raises(DataError, match="no column of classes found among img, label, person"):
        read_hugging_face(table(), SMALL, label="kind")
    with pytest.raises(DataError, match="the column 'person' holds Value, not pictures"):
        read_hugging_face(table(), SMALL, image="person")
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    values = [{"bytes": content, "path": None} for content in (buffer.getvalue(), buffer.getvalue()[:60])]
    features = hf.Features({"image": hf.Image(), "label": hf.Value("int64")})
    damaged = hf.Dataset.from_dict({"image": [*values, None], "label": [0, 1, 0]}, features=features)
    with pytest.raises(UnreadablePicturesError, match=r"2 of 3 .*: row 1 \(.*\); row 2 \(there is no picture\)"):
        read_hugging_face(damaged, SMALL)


@pytest.mark.parametrize("form", ["saved", "folder", "parquet"])
def test_reading_leaves_nothing_in_a_cache(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "cache", tmp_path / "temporary"]
    for place in places:
        place.mkdir()
    for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(hf.config, name, str(places[0]))
    monkeypatch.setattr("tempfile.tempdir", str(places[1]))
    source = tmp_path / "source"
    if form == "saved":
        table().save_to_disk(str(source))
    elif form == "folder":
        save(source, {"cat": 2, "dog": 1})
    else:
        source.mkdir()
        table().to_parquet(str(source / "train.parquet"))
    data = read_hugging_face(source, SMALL)
    assert data.names == ("cat", "dog")
    assert len([example["image"] for example in data]) == (3 if form == "folder" else 6)
    read_folder(save(tmp_path / "plain", {"cat": 2}), SMALL)[0]
    assert [file for place in places for file in place.rglob("*")] == []


def test_splits_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be loaded"):
        load_split(tmp_path / "nowhere")
    hf.DatasetDict({"train": table()}).save_to_disk(str(tmp_path / "parts"))
    with pytest.raises(SourceError, match="has no split 'test'; it has train"):
        load_split(tmp_path / "parts", "test")
    hf.Dataset.from_dict({"x": []}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(SourceError, match="that it is not empty"):
        load_split(tmp_path / "none")


@REAL
@pytest.mark.data
def test_real_pictures(tmp_path: Path) -> None:
    folder = Path(os.environ["EXPUNGE_DATA_DIR"])
    faces = read_npz(folder / "orl_faces.npz", Fitting((56, 46), channels=1), labels="subject")
    assert (len(faces), len(faces.names), faces[0]["image"].shape) == (400, 40, (1, 56, 46))
    assert len(split(faces, classes=[7]).forget) == 10
    digits = read_npz(folder / "mnist.npz", Fitting(channels=1), images="x_test", labels="y_test")
    assert (len(digits), digits.names, digits[5]["image"].shape) == (10000, tuple("0123456789"), (1, 28, 28))
    with tarfile.open(folder / "cifar10_jpeg.tar.xz", "r:xz") as archive:
        first = []
        for member in archive:
            if member.isfile() and member.name.endswith(".jpg"):
                first.append(member)
            if len(first) == 50:
                break
        archive.extractall(tmp_path, first, filter="data")
    found = next(path.parent.parent for path in tmp_path.rglob("*.jpg"))
    data = read_folder(found, Fitting(32))
    assert len(data) == 50
    assert data[0]["image"].shape == (3, 32, 32)
