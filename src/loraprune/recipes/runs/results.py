"""Results of ``loraprune eval`` for a comparison, and which run or model a name in such a file means."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprune.evaluation.results import Entry, ResultsError, read_results
from loraprune.recipes.runs.folders import last_part

logger = logging.getLogger("loraprune")

RESULTS_FILE = "evaluation.json"


@dataclass(frozen=True)
class Subject:
    """What a figure is of.

    Attributes:
        name: that a run is shown under; of a model that runs began with, the last part of its own.
        began: whether it is such a model.
    """

    name: str
    began: bool = False


def read_entries(files: Sequence[str | Path], folders: Sequence[Path]) -> list[tuple[Path, Entry]]:
    """Entries of the files named, then of those in the folders, each with its file.

    Raises:
        ResultsError: a file that was named cannot be read; one that lies in a folder is left out with a warning.
    """
    named = [Path(file) for file in files]
    found = [(file, entry) for file in named for entry in read_results(file).entries]
    known = {file.resolve() for file in named}
    for folder in folders:
        file = folder / RESULTS_FILE
        if file.is_file() and file.resolve() not in known:
            try:
                found += [(file, entry) for entry in read_results(file).entries]
            except ResultsError as error:
                logger.warning("warning: %s is left out: %s", file, error)
    return found


def subject_of(name: str, file: Path, folders: Mapping[str, Path], models: Sequence[str]) -> Subject | None:
    """The run, or the model that runs began with, that a name in a file of figures means.

    A folder is known by its place, seen from here or from the file; else by its own name, if no other has the same.

    Args:
        name: as the file has it.
        file: that has it.
        folders: of the runs, by the names that they are shown under.
        models: names of the models that runs began with.

    Returns:
        None if it means none of them, or could mean several.
    """
    places = {Path(name).resolve(), (file.parent / name).resolve()}
    for run, folder in folders.items():
        if folder.resolve() in places:
            return Subject(run)
    last = last_part(name)
    if name in models:
        return Subject(last, began=True)
    alike = [Subject(run) for run, folder in folders.items() if folder.resolve().name == last]
    alike += [Subject(last, began=True) for model in models if last_part(model) == last]
    return alike[0] if len(alike) == 1 else None
