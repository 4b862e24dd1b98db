"""Folders of images, listed here and not by a dataset builder: that would leave the files' names behind in a cache."""

import os
from pathlib import Path

from PIL import Image

from expunge.errors import SourceError

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def picture_folders(folder: Path, split: str, key: str) -> dict[str, list[Path]]:
    """The image files of each class, classes and files in order of name.

    The class of a file is the name of the folder that it lies in. Where all folders right under `folder` have names of
    splits, such as `train` and `test`, they are splits; otherwise everything is the split `train`. Classes are those of
    all splits, so that their numbers agree; a class may be without files in one of them.

    Args:
        folder: The whole.
        split: Which split to list.
        key: Where the folder stands in the job, for error messages.

    Raises:
        SourceError: There is no such split, there are no images in it, or some lie outside of a class.
    """
    splits = _splits(folder)
    if split not in splits:
        raise SourceError(f"{key}.split: {folder} has no split {split!r}; it has {', '.join(splits)}")
    listed = {name: _pictures(folders, key) for name, folders in splits.items()}
    if not listed[split]:
        raise SourceError(
            f"{key}: {folder} holds no images for the split {split!r}; make a sub-folder for each class, with files in "
            "a format that Pillow reads"
        )
    names = sorted({file.parent.name for files in listed.values() for file in files})
    classes: dict[str, list[Path]] = {name: [] for name in names}
    for file in listed[split]:
        classes[file.parent.name].append(file)
    return classes


def _splits(folder: Path) -> dict[str, list[Path]]:
    """The folders that make up each split."""
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not _is_hidden(path.name)]
    known = {name: split for split, names in _SPLITS.items() for name in names}
    if not below or any(path.name not in known for path in below):  # a class may be called `train` as well
        return {"train": [folder]}
    splits = {split: [path for path in below if known[path.name] == split] for split in _SPLITS}
    return {split: folders for split, folders in splits.items() if folders}


def _pictures(folders: list[Path], key: str) -> list[Path]:
    extensions = {extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    for folder in folders:
        files = [file for file in _files(folder) if file.suffix.lower() in extensions]
        depths = {len(file.relative_to(folder).parts) for file in files}
        if 1 in depths or len(depths) > 1:
            raise SourceError(
                f"{key}: the images in {folder} do not all lie in sub-folders of the same depth to take labels from; "
                "make one sub-folder for each class, and nothing beside or below"
            )
        found += files
    return found


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        found += [Path(place, name) for name in files if not _is_hidden(name)]
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))
