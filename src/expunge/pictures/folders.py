"""Folders of picture files, listed here and not by a dataset builder: that would leave the files' names in a cache."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from expunge.errors import ForgetSetError, SourceError
from expunge.pictures.dataset import Pictures, numbered
from expunge.pictures.fitting import Fitting

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class _Files:
    """Picture files of a split; names are relative to the whole folder."""

    folder: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, position: int) -> str:
        return self.names[position]

    def open(self, position: int) -> Image.Image:
        return Image.open(self.folder / self.names[position])


def read_folder(
    folder: str | Path,
    fitting: Fitting,
    *,
    split: str = "train",
    levels: Mapping[str, int] | None = None,
    check: bool = True,
) -> Pictures:
    """Pictures whose class is the folder that they lie in, as ImageNet and Places are laid out.

    Args:
        folder: The whole; see `picture_folders` for classes and splits.
        fitting: How the pictures become tensors.
        split: Which split to read.
        levels: Columns of one's own, each the name of a folder between the split and the file, counted from the
            outermost, 0: for `person/session/7.jpg`, `{"person": 0}` makes a person's pictures findable.
        check: Decode each picture once first, so that a damaged one is known before any training.

    Raises:
        SourceError: There is no such folder or split, it holds no picture, or one lies outside of a class.
        UnreadablePicturesError: Pictures cannot be decoded; it lists them.
        ShapeError: They are of several sizes, and the fitting leaves them so.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}; check the path")
    pictures = pictures_in(root, picture_folders(root, split, "pictures"), fitting, levels or {})
    if check:
        pictures.check()
    return pictures


def listed_files(path: str | Path, folder: str | Path) -> list[str]:
    """Names of files that a text file lists, a path a line, as the column `file` of `read_folder` has them.

    Args:
        path: The list; empty lines are passed over.
        folder: The whole folder of pictures, to which the paths are relative, or in which they lie.

    Raises:
        SourceError: The list cannot be read as UTF-8 text.
        ForgetSetError: It is empty, or a path lies outside of the folder; lines are given by number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as UTF-8 text; check the path and save it as such") from error
    root = Path(folder).resolve()
    places = {number: (root / line.strip()).resolve() for number, line in enumerate(lines, start=1) if line.strip()}
    if not places:
        raise ForgetSetError(f"{path} lists no file; give a path a line")
    outside = [number for number, place in places.items() if not place.is_relative_to(root)]
    if outside:
        raise ForgetSetError(
            f"{len(outside)} lines of {path} name files outside of {folder}; the first is line {outside[0]}"
        )
    return [place.relative_to(root).as_posix() for place in places.values()]


def picture_folders(folder: Path, split: str, key: str) -> dict[str, list[Path]]:
    """The image files of each class, classes and files in order of name.

    The class of a file is the path of the folder that it lies in, such as `cat`, or `apartment_building/outdoor` where
    classes are nested. Where all folders right under `folder` have names of splits, such as `train` and `test`, they
    are splits; otherwise everything is the split `train`. Classes are those of all splits, so that their numbers
    agree; a class may be without files in one of them.

    Args:
        folder: The whole.
        split: Which split to list.
        key: What is listed, for error messages.

    Raises:
        SourceError: There is no such split, there are no images in it, or some lie outside of a class.
    """
    splits = _splits(folder)
    if split not in splits:
        raise SourceError(f"{key}.split: {folder} has no split {split!r}; it has {', '.join(splits)}")
    listed = {name: _by_class(folders, key) for name, folders in splits.items()}
    if not listed[split]:
        raise SourceError(
            f"{key}: {folder} holds no images for the split {split!r}; make a sub-folder for each class, with files in "
            "a format that Pillow reads"
        )
    names = sorted({name for classes in listed.values() for name in classes})
    return {name: listed[split].get(name, []) for name in names}


def pictures_in(
    folder: Path, found: Mapping[str, Sequence[Path]], fitting: Fitting, levels: Mapping[str, int]
) -> Pictures:
    """The dataset of what `picture_folders` found in a folder; for `levels` see `read_folder`."""
    files = [(name, file) for name, pictures in found.items() for file in pictures]
    labels, names = numbered([name for name, _ in files], tuple(found))
    stored = _Files(folder, [file.relative_to(folder).as_posix() for _, file in files])
    columns = {
        column: np.asarray([_level(name, level, column) for name, _ in files]) for column, level in levels.items()
    }
    return Pictures(stored, fitting, labels, names, columns)


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The folders that make up each split."""
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not _is_hidden(path.name)]
    known = {name: split for split, names in _SPLITS.items() for name in names}
    if not below or any(path.name not in known for path in below):  # a class may be called `train` as well
        return {"train": [folder]}
    splits = {split: [path for path in below if known[path.name] == split] for split in _SPLITS}
    return {split: folders for split, folders in splits.items() if folders}


def _by_class(folders: Sequence[Path], key: str) -> dict[str, list[Path]]:
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: dict[str, list[Path]] = {}
    for folder in folders:
        files = [file for file in _files(folder) if file.suffix.lower() in extensions]
        loose = sum(file.parent == folder for file in files)
        if loose:
            raise SourceError(
                f"{key}: {loose} images lie right in {folder} and not in a sub-folder to take a class from; make one "
                "sub-folder for each class"
            )
        for file in files:
            found.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file)
    return found


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(place, name) for name in files if not _is_hidden(name)]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _level(name: str, level: int, column: str) -> str:
    parts = name.split("/")
    if not 0 <= level < len(parts):
        raise SourceError(
            f"the column {column!r} is to be folder {level}, counted from 0, above each picture; some lie below "
            f"{len(parts)} only"
        )
    return parts[level]
