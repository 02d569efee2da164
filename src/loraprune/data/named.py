"""Sources that ``--data`` names: files, glob patterns, folders and Hub datasets, with or without a weight.

Nothing here reads data or imports ``datasets``.
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
    """Data that functions of the package take: one source, or a list of sources."""

ENDINGS = (".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt")
"""Endings of data files."""

COMPRESSED = (".gz", ".zst")
"""Endings that may follow those in ``ENDINGS``, except ``.parquet``, which is already compressed."""

SUPPORTED = f"{', '.join(ENDINGS)}; or one of these and {' or '.join(COMPRESSED)}"

_DEMO = "demo"

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One source of rows.

    Attributes:
        name: name as given, without the weight.
        paths: file, folder, or the files that a pattern matches; empty for a Hub dataset.
        config: configuration of a Hub dataset or of a local copy of one.
        weight: weight in the mixture, relative to the other weights; None if all rows are used.
        loaded: dataset that was passed instead of a name.
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
        """Whether it is one or several files."""
        return bool(self.paths) and not self.paths[0].is_dir()


def find_sources(given: Any) -> tuple[DataSource, ...]:
    """Find the sources given as a name, a dataset, or a list of these. A :class:`DataSource` stays as it is.

    Raises:
        FileNotFoundError: a file or a folder does not exist, or a pattern matches no data file.
        ValueError: no source is named, a weight is not a number above 0, only some sources have a weight, or two
            sources share rows.
    """
    found = tuple(_find(item) for item in (given if isinstance(given, (list, tuple)) else [given]))
    if not found:
        raise ValueError(_NOTHING)
    unweighted = [source.name for source in found if source.weight is None]
    if 0 < len(unweighted) < len(found):
        raise ValueError(
            f"{unweighted[0]} has no weight, but other sources have one. Give a weight to every source (NAME:WEIGHT) "
            "or to none."
        )
    _check_apart(found)
    return found


_NOTHING = "No data is named. Give a file, a folder or the name of a dataset on the Hub."


def data_places(given: Any) -> tuple[Path, ...]:
    """Return the files and folders that data is read from, for the check that no output overwrites them.

    Raises:
        FileNotFoundError: see :func:`find_sources`.
        ValueError: see :func:`find_sources`.
    """
    if given is None:
        return ()
    return tuple(path for source in find_sources(given) for path in source.paths)


def hub_data_set(given: Any) -> str | None:
    """Return the first dataset that comes from the Hub; None if all data is local."""
    found = (
        source.place
        for source in find_sources(given)
        if not source.paths and source.loaded is None and not source.is_demo
    )
    return next(found, None)


def is_stream(loaded: Any) -> bool:
    """Whether a dataset that was passed in is streamed, so that it has no length; it may be a dictionary of splits."""
    one = next(iter(loaded.values()), None) if isinstance(loaded, dict) else loaded
    return one is not None and not hasattr(one, "__len__")


def data_ending(path: Path) -> str | None:
    """Return the ending that gives a file's format: ``.jsonl`` for ``rows.jsonl.gz``; None if it is not a data file."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    ending = inner.suffix.lower()
    return ending if ending in ENDINGS else None


def _find(given: Any) -> DataSource:
    if isinstance(given, DataSource):
        return given
    if not isinstance(given, (str, Path)):
        if not hasattr(given, "column_names"):
            raise ValueError(f"The data is {given!r}. Give a file, a folder, the name of a dataset, or a dataset.")
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
    """Split a name from its weight. The colons of an existing path belong to the path."""
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
    """Whether a name can be that of a Hub dataset."""
    return data_ending(Path(name)) is None and _HUB_NAME.fullmatch(name) is not None


def _matches(name: str, pattern: Path) -> tuple[Path, ...]:
    """The data files that a pattern matches, sorted by name."""
    found = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (may be absolute)
    files = tuple(path for path in found if path.is_file() and data_ending(path) is not None)
    if files:
        return files
    others = f" It matches {found[0]}, which is not a data file: endings are {SUPPORTED}." if found else ""
    raise FileNotFoundError(
        f"No data file matches {name}.{others}{'' if found else ' Check the folder and the ending.'}"
    )


def _check_apart(sources: Sequence[DataSource]) -> None:
    """Check that no source is named twice: one copy of a row could be trained on and the other held out."""
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
                raise ValueError(f"{path} lies in {around}, which is also named. Name one of them.")


def near_files(path: Path) -> str:
    """Suggest what a mistyped path may have meant, as the end of a message."""
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() or data_ending(entry) is not None]
    stems = near_names(path.stem, sorted({entry.stem for entry in entries}), 3)  # all endings look alike
    near = [str(entry) for entry in entries if entry.stem in stems] or near_names(str(path), [_DEMO])
    return f" Did you mean {' or '.join(near)}?" if near else ""
