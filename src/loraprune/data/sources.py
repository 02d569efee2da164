"""Sources of rows: files, folders of several kinds, Hub datasets, and datasets in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from loraprune.data.alignment import concatenated
from loraprune.data.demo import standard_library_text
from loraprune.data.files import read_file
from loraprune.data.front_matter import front_matter
from loraprune.data.hub import hub_or_cache, missing_hub
from loraprune.data.images import class_folders, read_image_folder
from loraprune.data.named import SUPPORTED, DataSource, data_ending, find_sources, near_files

_SPLIT_WORDS: dict[str, frozenset[str]] = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"validation", "valid", "val", "dev", "eval"}),
    "test": frozenset({"test", "testing"}),
}


def load_source(data: str | DataSource, *, split: str = "train", name: str | None = None) -> Dataset:
    """Read the rows of one source.

    This writes nothing beside the data and runs no code that comes with it.

    Args:
        data: source that :func:`~loraprune.data.named.find_sources` found, or a name. A folder may hold data files,
            one sub-folder of images for each class (or one such folder for each split), the output of
            ``save_to_disk``, or a copy of a Hub dataset. ``demo`` is the text of Python's standard library.
        split: split of a Hub dataset, of a copy of one, or of a saved ``DatasetDict``. In other folders, it selects
            the files or the sub-folder named after it (``train-0.parquet``, ``stories_valid.jsonl``, ``test/``), or
            the files named after no split. It does not apply to single files and glob patterns.
        name: configuration of a Hub dataset or of a copy of one.

    Raises:
        FileNotFoundError: the file, folder, split or Hub dataset does not exist, or the Hub cannot be reached.
        ValueError: the source cannot be read, or holds no rows.
    """
    source = data if isinstance(data, DataSource) else find_sources(data)[0]
    name = source.config or name
    if source.loaded is not None:
        return _of_split(source.loaded, split, source.name)
    if source.is_demo:
        train, held_out = standard_library_text()
        return Dataset.from_dict({"text": train if _split_key(split) == "train" else held_out})
    if is_published(source, name):
        rows = open_published(source, split, name)
        if rows.num_rows == 0:
            raise ValueError(f"The split {split!r} of {source.place!r} holds no rows. Choose another split.")
        return rows
    path = source.paths[0]
    if name is not None:
        raise ValueError(f"name={name!r} picks a configuration of a Hub dataset, but {path} is on disk. Drop it.")
    if "[" in split:
        raise ValueError(
            f"split={split!r} takes a slice of a Hub dataset, but {path} is on disk. Name the whole split."
        )
    if _is_saved(path):
        return _load_saved(path, split)
    files = source_files(source, split)
    if files is None:
        return _load_images(path, _split_key(split))
    where = f"The files in {path}" if path.is_dir() else f"The files of {source.name}"
    return concatenated([read_file(file) for file in files], [file.name for file in files], where, "Give one file.")


def is_published(source: DataSource, name: str | None) -> bool:
    """Whether a source is a Hub dataset, or a folder with a copy of one."""
    if not source.paths:
        return source.loaded is None and not source.is_demo
    folder = source.paths[0]
    return folder.is_dir() and not _is_saved(folder) and (name is not None or _is_copy(folder))


def open_published(source: DataSource, split: str, name: str | None, *, streaming: bool = False) -> Any:
    """Load a Hub dataset or a copy of one, whole or as a stream.

    Raises:
        FileNotFoundError: the dataset is not on the Hub, or the Hub cannot be reached.
        ValueError: the dataset cannot be loaded.
    """
    place = str(source.paths[0]) if source.paths else source.place
    options = {"streaming": True} if streaming else {}
    try:
        with hub_or_cache(place):
            return datasets.load_dataset(place, name, split=split, **options)
    except (FileNotFoundError, ConnectionError) as error:
        if source.paths:
            raise ValueError(f"The folder {place} cannot be loaded: {_one_line(error)}") from error
        unreachable = isinstance(error, ConnectionError)
        said = "the Hub cannot be reached" if unreachable else "the Hub has no such dataset"
        reason = missing_hub() or f"{said} ({_one_line(error)})"
        raise FileNotFoundError(
            f"{place!r} is not a local file or folder, and {reason}. Check the path, the name, and the network."
            f"{near_files(Path(place))}"
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        what = f"The folder {place}" if source.paths else f"The Hub dataset {place!r}"
        raise ValueError(f"{what} cannot be loaded: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_copy(folder: Path) -> bool:
    """Whether a folder is a copy of a Hub dataset: its card describes splits, or all data files are in sub-folders."""
    values = front_matter(folder / "README.md")
    if "configs" in values or "dataset_info" in values:
        return True
    if _data_files(folder) or any(class_folders(place) for place in (folder, *folder.iterdir()) if place.is_dir()):
        return False
    return any(data_ending(path) is not None for path in folder.glob("*/*"))


# Output of `save_to_disk`, and datasets in memory.


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _load_saved(folder: Path, split: str) -> Dataset:
    try:
        saved = datasets.load_from_disk(str(folder))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"The folder {folder} cannot be loaded: {_one_line(error)}") from error
    rows = _of_split(saved, split, str(folder))
    if rows.num_rows == 0:
        raise ValueError(f"{folder} holds no rows. Give a dataset with at least one.")
    return rows


def _of_split(found: Any, split: str, where: str) -> Any:
    """Select a split from a dictionary of splits; return a dataset as it is."""
    if not isinstance(found, dict):
        return found
    for key, rows in found.items():
        if key == split or _split_key(key) == _split_key(split):
            return rows
    raise FileNotFoundError(
        f"{where} has the splits {', '.join(found)}, but none called {split!r}. Name another split."
    )


# Folders of data files and of images.


def _split_key(split: str) -> str:
    return next((key for key, names in _SPLIT_WORDS.items() if split.lower() in names), split)


def _split_of(path: Path) -> str | None:
    """The split that a file is named after, if any."""
    words = set(re.split(r"[-_.]", path.name.lower()))
    return next((split for split, names in _SPLIT_WORDS.items() if names & words), None)


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file() and data_ending(entry) is not None and not entry.name.startswith((".", "_"))
    )


def source_files(source: DataSource, split: str) -> list[Path] | None:
    """Return the data files of a source, or those of a split if it is a folder; None if it does not consist of files.

    Raises:
        FileNotFoundError: a folder has data files, but none of the split.
    """
    if source.is_file:
        return list(source.paths)
    folder = source.paths[0] if source.paths else None
    files = [] if folder is None or _is_saved(folder) else _data_files(folder)
    if not files:
        return None
    wanted = _split_key(split)
    chosen = [file for file in files if _split_of(file) == wanted] or [
        file for file in files if _split_of(file) is None
    ]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise FileNotFoundError(
            f"The folder {folder} holds no files of the split {split!r}, only {names}. Name a file or another split."
        )
    return chosen


def _load_images(folder: Path, split: str) -> Dataset:
    """Read a folder of classes, or its sub-folder of the wanted split."""
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    splits = {_split_of(entry): entry for entry in entries if _split_of(entry) and class_folders(entry)}
    if split in splits:
        return read_image_folder(splits[split])
    if splits:
        raise FileNotFoundError(
            f"The folder {folder} holds images of the splits {', '.join(sorted(map(str, splits)))}, but none of "
            f"{split!r}. Name another split."
        )
    if class_folders(folder):
        return read_image_folder(folder)
    raise FileNotFoundError(
        f"The folder {folder} holds no data files (endings: {SUPPORTED}) and no sub-folders of images."
    )
