"""What a report is made from again: the data beside the old one, or the record of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraprune.record.course import group_maps
from loraprune.record.history import FILE as RECORD
from loraprune.record.report_data import GroupMap, Importance, ReportData
from loraprune.report.from_record import report_of, shown_measures
from loraprune.structure.dimensions import WHOLE_KINDS
from loraprune.tasks.measures import NONZERO, PARAMETERS, Measure
from loraprune.tasks.registry import TASKS

DATA = "report.json"


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """A run whose report is to be made again.

    Attributes:
        folder: of the run.
        page: where its report is.
        data: that the report shows.
        base: name of the model that the run began with.
    """

    folder: Path
    page: Path
    data: ReportData
    base: str


def read_source(run: str | Path) -> ReportSource:
    """Read a run.

    The data of its old report come first, for they hold what the record does not: scores, completions, notes, and what
    an earlier ``loraprune report`` added. A run without a report gets one from its record.

    Args:
        run: its folder, or the ``report.json`` in it.

    Raises:
        ValueError: there is no run, or what there is of it cannot be read.
    """
    path = Path(run).expanduser()
    if path.is_file():
        if path.suffix != ".json" or path.name == RECORD:
            raise ValueError(f"{path} is no data of a report. Name the folder of a run, or the {DATA} in it.")
        data = with_maps(ReportData.from_json(path))
        return ReportSource(folder=path.parent, page=path.with_suffix(".html"), data=data, base=data.model)
    if not path.is_dir():
        raise ValueError(f"There is no folder {path}. Name that of a finished run.")
    if (path / DATA).is_file():
        data = with_maps(ReportData.from_json(path / DATA))
    elif (path / RECORD).is_file():
        data = _from_record(path / RECORD)
    else:
        raise ValueError(
            f"{path} holds neither {DATA} nor {RECORD}, so that it is no finished run of loraprune prune, oneshot or "
            "recover. Name the folder that a run wrote."
        )
    return ReportSource(folder=path, page=path / "report.html", data=data, base=data.model)


def _from_record(path: Path) -> ReportData:
    """The report of a record alone: without scores of the groups and without completions.

    Raises:
        ValueError: the record cannot be read, or is that of a run that measured nothing.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it holds no object")
        if "metrics" not in record:
            raise ValueError("it holds no measures, as one that save_pruned wrote")
        return report_of(record, _measures(record))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"No report can be made from {path}: {what}.") from error


def _measures(record: Mapping[str, Any]) -> tuple[Measure, ...]:
    task = next((task for task in TASKS if task.name == record["task"]), None)
    if task is None:
        raise ValueError(f"the task {record['task']!r} is unknown")
    if "oneshot" in record["settings"] and "sparsity" in record["metrics"]:
        return tuple(NONZERO if measure is PARAMETERS else measure for measure in task.measures)
    return shown_measures(task.measures, record["metrics"])


def with_maps(data: ReportData) -> ReportData:
    """The data of a report of an earlier version with maps, as far as it knew the groups one by one."""
    if data.maps or not data.importance or data.recovery is not None:
        return data
    return replace(data, maps=_maps(data.importance))


def _maps(importance: Mapping[str, Importance]) -> tuple[GroupMap, ...]:
    dimensions = [
        {"name": name, "kind": item.kind, "layer": item.layer, "groups": len(item.kept)}
        for name, item in importance.items()
        if item.kind not in WHOLE_KINDS
    ]
    kept = {name: [group for group, stays in enumerate(item.kept) if stays] for name, item in importance.items()}
    return group_maps(dimensions, kept)
