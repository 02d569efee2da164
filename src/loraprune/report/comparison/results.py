"""Results of ``loraprune eval`` for a comparison, and which run or model a figure in such a file is of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraprune.measure.evaluation.results import Entry, ResultsError, read_results
from loraprune.measure.owner import Known, Owners
from loraprune.report.comparison.runs import last_part

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


@dataclass
class Subjects:
    """The runs that are compared and the models that they began with, told apart by what files of figures say of them.

    Attributes:
        owners: these models.
        stale: names of those that had other files when they were measured, by file of figures.
    """

    owners: Owners[Subject]
    stale: dict[Path, dict[str, None]] = field(default_factory=dict)

    @classmethod
    def among(cls, folders: Mapping[str, Path], models: Mapping[str, Path]) -> Subjects:
        """The runs in these folders, by the names that they are shown under, and the models that they began with.

        Args:
            folders: of the runs.
            models: names of the models, with the folders that may hold them.
        """
        known = {Subject(run): Known(folder=folder) for run, folder in folders.items()}
        known |= {Subject(last_part(name), began=True): Known(folder=at, name=name) for name, at in models.items()}
        return cls(Owners(known, by_own_name=True))

    def of(self, name: str, fingerprint: str | None, file: Path) -> Subject | None:
        """What a figure is of; None where it is of none of them, or of an older state of one, which is noted."""
        found = self.owners.of(name, fingerprint, file)
        if found.stale:
            self.stale.setdefault(file, {})[name] = None
            return None
        return found.key

    def notes(self) -> list[str]:
        """A sentence about each file with figures of older states."""
        return [
            f"Figures of {', '.join(names)} in {file} are left out: the files of these models are others now. Measure "
            "them again."
            for file, names in self.stale.items()
        ]
