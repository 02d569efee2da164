"""Which results of ``loraprune eval`` are of a run and which of the model that it began with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraprune.measure.evaluation.results import Entry, read_results
from loraprune.measure.owner import Known, Owners

RESULTS = "evaluation.json"
"""Picked up from the folder of a run by itself."""


@dataclass(kw_only=True)
class RunEntries:
    """Results sorted by the model that they are of.

    Attributes:
        dense: of the model before the run, the newest last; ``pruned``: of the result.
        foreign: names of other models, by file.
        stale: results of a folder that holds another model by now, by file.
    """

    dense: list[Entry] = field(default_factory=list)
    pruned: list[Entry] = field(default_factory=list)
    foreign: dict[Path, list[str]] = field(default_factory=dict)
    stale: dict[Path, list[Entry]] = field(default_factory=dict)

    def pairs(self) -> Iterator[tuple[Entry | None, Entry | None]]:
        """Results of both models that were measured in the same way side by side; the newest of each."""
        dense, pruned = ({_condition(entry): entry for entry in side} for side in (self.dense, self.pruned))
        for condition in {**pruned, **dense}:
            yield dense.get(condition), pruned.get(condition)


def find_entries(folder: Path, base: str, files: Sequence[str | Path]) -> RunEntries:
    """Sort the results of the files, and of those beside the run.

    A model is known by the hash of its files. Where there are none to hash (a hub name, a folder that is gone), it is
    known by its name: a folder by its place, seen from here or from the file of results.

    Args:
        folder: of the run.
        base: name of the model that the run began with.
        files: of results.

    Raises:
        ResultsError: a file is none, or one of another version.
        ValueError: none of the results of a file that was named is of this run or of its base.
    """
    named = [Path(file).expanduser() for file in files]
    own = folder / RESULTS
    every = [*([own] if own.is_file() and own.resolve() not in {file.resolve() for file in named} else []), *named]
    owners = Owners({"pruned": Known(folder=folder), "dense": Known(folder=Path(base), name=base)})
    found = RunEntries()
    for file in every:
        before = len(found.dense) + len(found.pruned)
        for entry in sorted(read_results(file).entries, key=lambda entry: entry.created):
            owner = owners.of(entry.model, entry.fingerprint, file)
            if owner.key is None:
                found.foreign.setdefault(file, []).append(entry.model)
            elif owner.stale:
                found.stale.setdefault(file, []).append(entry)
            else:
                (found.pruned if owner.key == "pruned" else found.dense).append(entry)
        if file in named and len(found.dense) + len(found.pruned) == before:
            raise ValueError(_nothing(file, folder, base, found))
    return found


def _nothing(file: Path, folder: Path, base: str, found: RunEntries) -> str:
    stale = found.stale.get(file)
    if stale:
        return f"{file} holds results of {stale[0].model} as it was before it was written anew. Evaluate it again."
    names = ", ".join(dict.fromkeys(found.foreign.get(file, ()))) or "no model"
    return (
        f"Of the results in {file} none is of {folder} or of the model that it was made from, {base}: they are of "
        f"{names}. Name another file, or evaluate these models."
    )


def _condition(entry: Entry) -> str:
    """How a figure was measured: all that it depends on but the model and the kind of device."""
    settings = {name: value for name, value in entry.settings.items() if name != "device"}
    return json.dumps([entry.kind, entry.name, settings, entry.data_identity], sort_keys=True, default=str)
