"""Hugging Face datasets, loaded so that nothing of a folder of the user's own is left behind in a cache."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import datasets as hf
from datasets.exceptions import DatasetsError

from expunge.errors import SourceError

_library = cast(Any, hf)  # its functions for loading are only partly annotated


def load_split(name: str | Path, split: str = "train", **options: Any) -> hf.Dataset:
    """One split of a dataset that `save_to_disk` wrote, of a folder of files, or of the hub.

    A folder that `save_to_disk` wrote is mapped into memory where it lies. Files of another folder are read into memory
    through a temporary folder that is removed afterwards, for the library's cache would keep their names or a copy of
    their content after the data are deleted. What comes from the hub stays in the library's cache.

    Args:
        name: Path, or name on the hub.
        split: Which part.
        options: Passed on to `datasets.load_dataset`, such as `revision`.

    Raises:
        SourceError: It cannot be loaded, has no such split, or is empty.
    """
    try:
        found = _loaded(Path(name), str(name), split, options)
    except (OSError, ValueError, LookupError, DatasetsError) as error:  # an IndexError where a saved one is empty
        raise SourceError(
            f"{name} cannot be loaded ({error}); check the name or path, the split, that it is not empty, and for the "
            "hub the network"
        ) from error
    if not isinstance(found, hf.Dataset):
        raise SourceError(f"{name} gives a {type(found).__name__}, not a dataset; name one split")
    return found


def _loaded(path: Path, name: str, split: str, options: dict[str, Any]) -> object:
    if (path / "dataset_dict.json").exists():
        parts = cast(hf.DatasetDict, _library.load_from_disk(str(path)))
        if split not in parts:
            raise SourceError(f"{path} has no split {split!r}; it has {', '.join(map(str, parts))}")
        return parts[split]
    if (path / "state.json").exists():
        return _library.load_from_disk(str(path))
    if not path.exists():
        return _library.load_dataset(name, split=split, **options)
    with TemporaryDirectory(prefix="expunge-") as cache:
        return _library.load_dataset(str(path), split=split, cache_dir=cache, keep_in_memory=True, **options)
