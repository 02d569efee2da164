"""Run folders of a comparison: the record, and the run that made the starting model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loraprune.record.run_record import RECORD_FILE, History, Machine, ModelMeasures, RunMetrics, RunRecord

_REMEMBERED = ("created", "base_model", "recipe", "method", "ratio", "pattern")
"""Fields that a record's summary of the previous run shares with that run's own record."""

STATE_SUFFIX = ".run"
"""Suffix of the folder with the state of an unfinished run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the compared folders.

    Attributes:
        name: display name.
        folder: path as given.
        record: record of the run; None for a model that loraprune did not make.
        base: run that made the starting model, if found.
    """

    name: str
    folder: Path
    record: RunRecord | None = field(default=None, repr=False)
    base: Run | None = None

    @property
    def metrics(self) -> RunMetrics:
        """Measures and course of the run; empty for a plain model."""
        return RunMetrics() if self.record is None else self.record.metrics

    @property
    def before(self) -> ModelMeasures:
        """Measures of the starting model."""
        return self.metrics.dense

    @property
    def after(self) -> ModelMeasures:
        """Measures of the result."""
        return self.metrics.pruned

    @property
    def base_name(self) -> str:
        """Name of the starting model; for a plain model, its own name."""
        return str(self.folder) if self.record is None else self.record.base_model

    @property
    def history(self) -> History | None:
        """How the starting model was made, if the record has it."""
        return None if self.record is None else self.record.base_pruning

    @property
    def began_dense(self) -> bool:
        """Whether loraprune had not pruned the starting model."""
        return self.record is not None and self.history is None

    @property
    def dense_name(self) -> str:
        """Name of the dense model at the start of the chain, if known."""
        if self.base is not None:
            return self.base.dense_name
        name, history = self.base_name, self.history
        while history is not None:
            name, history = history.base_model or name, history.base_pruning
        return name

    @property
    def what(self) -> str:
        """Description of the run: ``"50 % of the prunable parameters removed by fisher"``."""
        if self.record is None:
            return ""
        summary = self.record.summary()
        words = summary.in_words().replace("`", "")
        return ", ".join(filter(None, (words, "recovered"))) if summary.recipe == "recover" else words

    @property
    def base_words(self) -> str:
        """Description of the starting model: ``"dense"``, ``"2:4 sparse by wanda"``."""
        if self.base is not None:
            return self.base.what
        return "dense" if self.history is None else self.history.in_words().replace("`", "")

    @property
    def machine(self) -> tuple[str, ...]:
        """Properties of the machine that affect speed, if the record has them. The platform comes last."""
        machine = Machine() if self.record is None else self.record.machine
        threads = f"{machine.threads} of {machine.cpus} CPU threads" if machine.threads else None
        parts = (machine.accelerator, machine.processor, threads, machine.platform)
        return tuple(part for part in parts if part)

    def chain(self) -> Iterator[Run]:
        """This run and its predecessors."""
        run: Run | None = self
        while run is not None:
            yield run
            run = run.base


def last_part(name: str) -> str:
    """Own name of a folder or model."""
    return name.rstrip("/").rpartition("/")[2] or name


def read_runs(folders: Sequence[str | Path], names: Sequence[str] | None, plain: Sequence[str] = ()) -> list[Run]:
    """Read the records of the folders and of the runs before them.

    Args:
        folders: folders of runs, or of models described in other files.
        names: display names; None uses the folder names.
        plain: names of models described in files of figures. Their folders need no record.

    Raises:
        ValueError: a folder is not a run, a record is damaged, or the numbers of names and folders differ.
    """
    if not folders:
        raise ValueError("Name at least one folder of a run.")
    paths = [Path(folder).parent if Path(folder).name == RECORD_FILE else Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    twice = next((path for index, path in enumerate(paths) if resolved[index] in resolved[:index]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice. Name each folder once.")
    shown = _names(paths, names)
    runs = [
        Run(name=name, folder=path, record=_record(path, known=last_part(str(path)) in map(last_part, plain)))
        for path, name in zip(paths, shown, strict=True)
    ]
    return [_with_base(run, runs) for run in runs]


def _names(paths: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    if names is None:
        return _distinct([path.resolve().parts for path in paths])
    if len(names) != len(paths):
        raise ValueError(f"There are {len(paths)} runs and {len(names)} names. Give one name for each run, in order.")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"The name {twice!r} is given twice. Give each run its own name.")
    return list(names)


def _distinct(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """Shorten each path to as many last parts as distinguish it from the others."""
    found = []
    for own in parts:
        others = [other for other in parts if other != own]
        count = 1
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        found.append("/".join(own[-count:]))
    return found


def _record(folder: Path, *, known: bool) -> RunRecord | None:
    """Return the record of a folder; None if it has none and needs none."""
    path = folder / RECORD_FILE
    if not path.is_file():
        if known:
            return None
        raise ValueError(_no_run(folder))
    try:
        record = RunRecord.read(path)
    except ValueError as error:
        raise ValueError(f"{error} Leave this run out.") from error
    if record.versions and record.metrics.dense == record.metrics.pruned == ModelMeasures():
        if known:
            return None  # as any model that was measured
        raise ValueError(
            f"{path} holds no measures, like all records of save_pruned. Measure all runs with --eval, or leave this "
            "run out."
        )
    for side, measures in (("dense", record.metrics.dense), ("pruned", record.metrics.pruned)):
        if measures == ModelMeasures():
            raise ValueError(f"{path} is damaged: it holds no measures of the {side} model. Leave this run out.")
    return record


def _no_run(folder: Path) -> str:
    if folder.is_file():
        return f"{folder} is a file, but runs are folders. Leave it out: a pattern that ends in / matches only folders."
    if not folder.is_dir():
        return f"There is no folder {folder}. Name one that loraprune prune, oneshot or recover wrote."
    if folder.name.endswith(STATE_SUFFIX):
        return f"{folder} holds the state of an unfinished run. Finish it with --resume, and name its result."
    inside = sorted(path.parent.name for path in folder.glob(f"*/{RECORD_FILE}"))
    hint = f" It holds runs: name them, such as {folder / inside[0]}, or {folder}/*/." if inside else ""
    return (
        f"{folder} is not a run: it holds no {RECORD_FILE}.{hint} "
        "To compare a model that loraprune did not make, measure it with `loraprune eval` and pass --evaluation FILE."
    )


def _with_base(run: Run, runs: Sequence[Run], depth: int = 8) -> Run:
    """Link a run to its predecessors, found among the given runs or at the places its record names."""
    if run.history is None or depth == 0:
        return run
    own_name = last_part(run.base_name)
    places = [other.folder for other in runs]
    places += [Path(run.base_name), run.folder.parent / own_name]
    for place in sorted(places, key=lambda place: place.name != own_name):
        try:
            record = _record(place, known=True)
        except ValueError:
            continue
        if record is not None and _is_of(record, run.history):
            base = next((other for other in runs if other.folder == place), None)
            base = base or Run(name=own_name, folder=place, record=record)
            return replace(run, base=_with_base(base, runs, depth - 1))
    return run


def _is_of(record: RunRecord, history: History) -> bool:
    """Whether a record belongs to the run that a later one remembers. Several runs may end within one second."""
    summary = record.summary()
    same = all(getattr(history, name) in (None, getattr(summary, name)) for name in _REMEMBERED)
    return history.created is not None and same
