"""What ``--data`` names: files, patterns of files, folders, data sets of the hub, each with a weight or without.

Everything here is found out without reading data and without importing ``datasets``.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from loraprune.options.near import near_names

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset

    Data: TypeAlias = str | Path | Dataset | DatasetDict | IterableDataset | Sequence[Any]
    """What the functions of the package take as data: one source, or a list of them."""

ENDINGS = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt")
"""Endings of data files."""

COMPRESSED = (".gz", ".zst")
"""Endings that may follow one of these, but for ``.parquet``, which compresses itself."""

SUPPORTED = f"{', '.join(ENDINGS)}; or one of these and {' or '.join(COMPRESSED)}"

_DEMO = "demo"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One source of rows.

    Attributes:
        name: as it was given, without the weight.
        paths: the file or the folder, or the files that a pattern matches; empty of a data set of the hub.
        config: configuration of a data set of the hub, or of a local copy of one.
        weight: share of the mixture in relation to the other weights; None where all rows are taken.
        loaded: a data set that was passed in place of a name.
    """

    name: str
    paths: tuple[Path, ...] = ()
    config: str | None = None
    weight: float | None = None
    loaded: Any = None

    @property
    def place(self) -> str:
        """The name without the configuration."""
        return self.name if self.config is None else self.name.removesuffix(f":{self.config}")

    @property
    def is_demo(self) -> bool:
        """Whether it is the text of Python's standard library."""
        return self.name == _DEMO and not self.paths and self.loaded is None

    @property
    def is_file(self) -> bool:
        """Whether it is a file or several."""
        return bool(self.paths) and not self.paths[0].is_dir()


def find_sources(given: Any) -> tuple[DataSource, ...]:
    """Find what was named: a name or a data set, or a list of them. What was found already stays as it is.

    Raises:
        FileNotFoundError: a file or a folder does not exist, or a pattern matches no data file.
        ValueError: nothing is named, a weight is no number above 0, only some sources have one, or two sources share
            rows.
    """
    found = tuple(_find(item) for item in (given if isinstance(given, (list, tuple)) else [given]))
    if not found:
        raise ValueError(_NOTHING)
    unweighted = [source.name for source in found if source.weight is None]
    if 0 < len(unweighted) < len(found):
        raise ValueError(
            f"{unweighted[0]} has no weight, and other sources have one. Give a weight to every source (NAME:WEIGHT), "
            "or to none."
        )
    _check_apart(found)
    return found


_NOTHING = "No data is named. Give a file, a folder or the name of a data set on the hub."


def data_places(given: Any) -> tuple[Path, ...]:
    """The files and folders that data is read from, for the check that no output takes their place.

    Raises:
        FileNotFoundError: see :func:`find_sources`, as for ValueError.
    """
    if given is None:
        return ()
    return tuple(path for source in find_sources(given) for path in source.paths)


def hub_data_set(given: Any) -> str | None:
    """The first of the data sets that are asked of the hub; None of data that is here."""
    found = (
        source.place
        for source in find_sources(given)
        if not source.paths and source.loaded is None and not source.is_demo
    )
    return next(found, None)


def is_stream(loaded: Any) -> bool:
    """Whether a dataset that was passed in has no length: one of ``datasets`` that is streamed, or its splits."""
    one = next(iter(loaded.values()), None) if isinstance(loaded, dict) else loaded
    return one is not None and not hasattr(one, "__len__")


def data_ending(path: Path) -> str | None:
    """The ending that says how a file is read: ``.jsonl`` of ``rows.jsonl.gz``; None of what is no data file."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    ending = inner.suffix.lower()
    return ending if ending in ENDINGS else None


def _find(given: Any) -> DataSource:
    if isinstance(given, DataSource):
        return given
    if not isinstance(given, (str, Path)):
        if not hasattr(given, "column_names"):
            raise ValueError(f"The data is {given!r}. Give a file, a folder, the name of a data set, or a data set.")
        return DataSource(name=f"{type(given).__name__} in memory", loaded=given)
    if not str(given).strip():
        raise ValueError(_NOTHING)
    name, weight = _without_weight(str(given))
    return replace(_place(name), weight=weight)


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except OSError:  # a name that is too long
        return False


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _without_weight(given: str) -> tuple[str, float | None]:
    """A name and its weight. What exists on disk has its colons for itself."""
    name, _, amount = given.rpartition(":")
    if _exists(given) or not name:
        return given, None
    try:
        weight = float(amount)
    except ValueError:
        if _is_pattern(name) or (_exists(name) and not Path(name).expanduser().is_dir()):
            raise ValueError(f"The weight of {name} is {amount!r}; it must be a number above 0.") from None
        return given, None
    if not 0 < weight < math.inf:
        raise ValueError(f"The weight of {name} is {amount}; it must be a number above 0.")
    return name, weight


def _place(name: str) -> DataSource:
    path = Path(name).expanduser()
    if _exists(name):
        return DataSource(name=name, paths=(path,))
    if _is_pattern(name):
        return DataSource(name=name, paths=_matches(name, path))
    place, colon, config = name.rpartition(":")
    if colon and config and (Path(place).expanduser().is_dir() or is_hub_name(place)):
        return replace(_place(place), name=name, config=config)
    if not is_hub_name(name):
        raise FileNotFoundError(f"{path} does not exist.{near_files(path)}")
    return DataSource(name=name)


def is_hub_name(name: str) -> bool:
    """Whether a name can be that of a data set of the hub."""
    return data_ending(Path(name)) is None and _HUB_NAME.fullmatch(name) is not None


def _matches(name: str, pattern: Path) -> tuple[Path, ...]:
    """The data files that a pattern matches, in the order of their names."""
    found = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (may be absolute)
    files = tuple(path for path in found if path.is_file() and data_ending(path) is not None)
    if files:
        return files
    others = f" What it matches ({found[0]}) is none: endings are {SUPPORTED}." if found else ""
    raise FileNotFoundError(
        f"No data file matches {name}.{others}{'' if found else ' Check the folder and the ending.'}"
    )


def _check_apart(sources: Sequence[DataSource]) -> None:
    """Make sure that no row comes twice: it could be trained on and measured on."""
    seen: dict[object, str] = {}
    for source in sources:
        if source.loaded is not None:
            continue
        keys: list[object] = [(path.resolve(), source.config) for path in source.paths] or [source.name]
        for key in keys:
            if key in seen:
                what = source.paths[keys.index(key)] if source.paths else source.name
                by = "" if seen[key] == source.name == str(what) else f" (by {seen[key]} and by {source.name})"
                raise ValueError(f"{what} is named twice{by}. Name it once.")
            seen[key] = source.name
    folders = {path.resolve(): source.name for source in sources for path in source.paths if path.is_dir()}
    for source in sources:
        for path in source.paths:
            around = next((folders[parent] for parent in path.resolve().parents if parent in folders), None)
            if around is not None:
                raise ValueError(f"{path} lies in {around}, which is named too. Name one of them.")


def near_files(path: Path) -> str:
    """Say what a mistyped path may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() or data_ending(entry) is not None]
    stems = near_names(path.stem, sorted({entry.stem for entry in entries}), 3)  # all endings look alike
    near = [str(entry) for entry in entries if entry.stem in stems] or near_names(str(path), [_DEMO])
    return f" Did you mean {' or '.join(near)}?" if near else ""
