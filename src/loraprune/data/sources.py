"""Where data comes from: a file, a folder of files, or a data set of the Hugging Face hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import datasets
from datasets import Dataset

from loraprune.data.image_folder import class_folders, read_image_folder
from loraprune.data.readers import READERS, SUPPORTED, read_file

_SPLIT_WORDS: dict[str, frozenset[str]] = {
    "train": frozenset({"train", "training"}),
    "validation": frozenset({"validation", "valid", "val", "dev", "eval"}),
    "test": frozenset({"test", "testing"}),
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_source(data: str, *, split: str = "train", name: str | None = None, allow_download: bool = True) -> Dataset:
    """Read the rows of ``data``.

    Nothing is ever written beside the data, and no code that comes with data is run.

    Args:
        data: a .csv, .json, .jsonl, .parquet or .txt file, a folder with such files, a folder with one sub-folder of
            images for each class (or with one such folder for each split), or the name of a data set on the hub. What
            exists on disk wins over a hub name.
        split: split of a hub data set. In a folder it picks the files or the sub-folder named after it
            (``train-0.parquet``, ``stories_valid.jsonl``, ``test/``) or else those named after no split. A single file
            is taken whole.
        name: configuration of a hub data set that has several.
        allow_download: whether the hub may be asked.

    Raises:
        FileNotFoundError: there is no such file, folder or hub data set, or the hub cannot be reached.
        ValueError: what is there cannot be read, or holds no rows.
    """
    if not data.strip():
        raise ValueError("No data is named. Give a file, a folder or the name of a data set on the hub.")
    path = Path(data).expanduser()
    if path.exists():
        if name is not None:
            raise ValueError(f"name={name!r} picks a configuration of a hub data set, but {path} is on disk. Drop it.")
        if "[" in split:
            raise ValueError(f"split={split!r} takes a slice of a hub data set, but {path} is on disk. Name the whole.")
        return _load_folder(path, split) if path.is_dir() else read_file(path)
    if path.suffix.lower() in READERS or not _HUB_NAME.fullmatch(data):
        raise FileNotFoundError(f"{path} does not exist.{_near_names(path)}")
    if not allow_download:
        raise FileNotFoundError(
            f"{data!r} is no file or folder here, and downloads from the hub are off.{_near_names(path)}"
        )
    return _load_hub(data, split, name)


def _near_names(path: Path) -> str:
    """Say what a mistyped path may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() or entry.suffix.lower() in READERS]
    stems = difflib.get_close_matches(path.stem, {entry.stem for entry in entries})  # all endings look alike
    near = [str(entry) for entry in entries if entry.stem in stems]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _split_of(path: Path) -> str | None:
    """The split that a file is named after, if any."""
    words = set(re.split(r"[-_.]", path.stem.lower()))
    return next((split for split, names in _SPLIT_WORDS.items() if names & words), None)


def _load_folder(folder: Path, split: str) -> Dataset:
    files = sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file() and entry.suffix.lower() in READERS and not entry.name.startswith((".", "_"))
    )
    wanted = next((key for key, names in _SPLIT_WORDS.items() if split.lower() in names), split)
    if not files:
        return _load_images(folder, wanted)
    chosen = [file for file in files if _split_of(file) == wanted] or [
        file for file in files if _split_of(file) is None
    ]
    if not chosen:
        names = ", ".join(file.name for file in files)
        raise FileNotFoundError(
            f"The folder {folder} holds no files of the split {split!r}, only {names}. Name a file or another split."
        )
    parts = [read_file(file) for file in chosen]
    for file, part in zip(chosen, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise ValueError(
                f"The files in {folder} do not go together: {chosen[0].name} has the columns "
                f"{', '.join(parts[0].column_names)}, {file.name} has {', '.join(part.column_names)}. Give one file."
            )
    try:
        return datasets.concatenate_datasets(parts)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The files in {folder} hold values of different kinds in columns of the same name. Give one file."
        ) from error


def _load_images(folder: Path, split: str) -> Dataset:
    """A folder of classes, or the one of the wanted split in it."""
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    splits = {_split_of(entry): entry for entry in entries if _split_of(entry) and class_folders(entry)}
    if split in splits:
        return read_image_folder(splits[split])
    if splits:
        raise FileNotFoundError(
            f"The folder {folder} holds images of the splits {', '.join(sorted(map(str, splits)))}, and none of "
            f"{split!r}. Name another split."
        )
    if class_folders(folder):
        return read_image_folder(folder)
    raise FileNotFoundError(
        f"The folder {folder} holds no data files (endings: {SUPPORTED}) and no sub-folders of images."
    )


def _load_hub(data: str, split: str, name: str | None) -> Dataset:
    try:
        dataset = datasets.load_dataset(data, name, split=split)
    except (FileNotFoundError, ConnectionError) as error:
        reason = "the hub cannot be reached" if isinstance(error, ConnectionError) else "the hub has no such data set"
        raise FileNotFoundError(
            f"{data!r} is no file or folder here, and {reason} ({_one_line(error)}). Check the path, the name, "
            f"and the network.{_near_names(Path(data))}"
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"The hub data set {data!r} cannot be loaded: {_one_line(error)}") from error
    if dataset.num_rows == 0:
        raise ValueError(f"The split {split!r} of the hub data set {data!r} holds no rows. Choose another split.")
    return dataset


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
