"""The record that goes into ``pruning.json``: what was done, on what, and how the run went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loraprune.record.provenance import machine_description, timestamp, versions
from loraprune.record.report_data import Cut, GroupMap, HistoryPoint, LayerWidth, RefitError

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


def run_record(
    base: str, task: str, settings: dict[str, Any], metrics: dict[str, Any], plan: Plan, command: str | None
) -> dict[str, Any]:
    """Everything about a run as plain values."""
    record: dict[str, Any] = {
        "base_model": base,
        "task": task,
        "created": timestamp(),
        "command": command,
        "settings": settings,
        "metrics": metrics,
        "plan": plan.to_json(),
        "versions": versions(),
        "machine": machine_description(),
    }
    found: dict[str, Any] = plain(record)
    return found


def plain(value: Any) -> Any:
    """The value as JSON and YAML can write it: numbers of NumPy as Python's own, NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# What a record tells of the course of a run, as a report shows it; records of earlier versions tell less.

MAP_CELLS = 64
"""Cells of a map of one layer, at most."""


def dimensions_of(structure: Structure) -> list[dict[str, Any]]:
    """What the record keeps of a model's prunable dimensions, so that a plan can be read without the model."""
    return [
        {
            "name": dimension.name,
            "kind": dimension.kind,
            "layer": None if dimension.spans_blocks else dimension.layer,
            "groups": dimension.num_groups,
        }
        for dimension in structure
    ]


def points_of(metrics: Mapping[str, Any]) -> tuple[HistoryPoint, ...]:
    """The training steps that were logged."""
    points = (dict(point) for point in metrics.get("history", ()))
    return tuple(HistoryPoint(**{**point, "loss": _number(point["loss"])}) for point in points)


def _number(value: float | None) -> float:
    """A number of a record, in which NaN and infinities are None."""
    return math.nan if value is None else value


def cuts_of(pruning: Mapping[str, Any]) -> tuple[Cut, ...]:
    """The cuts (or masks) in the order made; where several fell on one step, one."""
    by_step = {cut["step"]: cut for cut in pruning.get("cuts", pruning.get("masks", ()))}
    return tuple(
        Cut(
            step=cut["step"],
            ratio=cut["ratio"],
            widths={kind: tuple(counts) for kind, counts in cut.get("widths", {}).items()},
            stability=cut.get("stability", {}),
            seconds=cut.get("seconds"),
        )
        for cut in by_step.values()
    )


def refit_errors_of(pruning: Mapping[str, Any]) -> tuple[RefitError, ...]:
    """Errors of the consumers at each cut; of several cuts without training, at the last one of each dimension."""
    errors = pruning.get("refit_errors", ())
    last: dict[str, int] = {}
    for error in errors:
        name = error["dimension"]
        last[name] = max(error.get("cut_number", 0), last.get(name, 0))
    return tuple(
        RefitError(
            step=error["step"],
            kind=error["kind"],
            layer=error["layer"],
            cut=error["cut"],
            repaired=error["repaired"],
        )
        for error in errors
        if error.get("cut_number", 0) == last[error["dimension"]]
    )


def group_maps(
    dimensions: Sequence[Mapping[str, Any]], kept: Mapping[str, Sequence[int]], cells: int = MAP_CELLS
) -> tuple[GroupMap, ...]:
    """Where in each layer groups went; nothing of dimensions that no layer has to itself.

    Args:
        dimensions: see :func:`dimensions_of`.
        kept: groups that stayed, by name of the dimension.
        cells: that a layer has at most; with more groups, runs of equally many neighbors share a cell.
    """
    maps = []
    for dimension in dimensions:
        if dimension["layer"] is None:
            continue
        total, stayed = dimension["groups"], set(kept[dimension["name"]])
        size = math.ceil(total / cells)
        runs = (range(start, min(start + size, total)) for start in range(0, total, size))
        shares = tuple(sum(group in stayed for group in run) / len(run) for run in runs)
        maps.append(GroupMap(kind=dimension["kind"], layer=dimension["layer"], kept=shares, groups_per_cell=size))
    return tuple(maps)


def widths_of(dimensions: Sequence[Mapping[str, Any]], kept: Mapping[str, Sequence[int]]) -> tuple[LayerWidth, ...]:
    """Groups that stayed in each layer; of whole blocks, which ones; nothing of what has no layer."""
    if [dimension["kind"] for dimension in dimensions] == ["blocks"]:
        (blocks,) = dimensions
        stayed = set(kept[blocks["name"]])
        return tuple(
            LayerWidth(layer=number, kind="blocks", total=1, kept=int(number in stayed))
            for number in range(blocks["groups"])
        )
    return tuple(
        LayerWidth(
            layer=dimension["layer"],
            kind=dimension["kind"],
            total=dimension["groups"],
            kept=len(kept[dimension["name"]]),
        )
        for dimension in dimensions
        if dimension["layer"] is not None
    )
