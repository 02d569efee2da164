"""The result of a run in one or two sentences: smaller, faster, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.record.report_data import Unit
from loraprune.report import before_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.record.report_data import ReportData, Row

_SPEED = (Unit.MILLISECONDS, Unit.TOKENS_PER_SECOND)
_QUALITY = (Unit.PERPLEXITY, Unit.ACCURACY, Unit.LOSS)
_SLOWER = " slower"


def verdict(data: ReportData) -> str:
    """Say what came out, as far as it was measured; empty where nothing was."""
    quality = _first(data.rows, _QUALITY)
    cost = _quality(quality) if quality is not None else ""
    if data.recovery is not None:
        return cost[:1].upper() + cost[1:]
    speed = _speed(_first(data.rows, _SPEED))
    facts = [fact for fact in (_size(data), speed) if fact]
    if not facts and not cost:
        return ""
    if not facts:
        return f"The {cost}"
    joint = " but " if speed.endswith(_SLOWER) else " and "
    return f"The {data.after} model {joint.join(facts)}." + (f" Its {cost}" if cost else "")


def _first(rows: Sequence[Row], units: Sequence[Unit]) -> Row | None:
    """The first row of the first unit that has one with both figures."""
    known = (row for unit in units for row in rows if row.unit is unit)
    return next((row for row in known if numbers.is_number(row.dense) and numbers.is_number(row.pruned)), None)


def _size(data: ReportData) -> str:
    headline = data.headline
    if headline.sparsity is not None:
        share = numbers.percent(headline.ratio)
        return f"has zeros for {share} of the weights of its linear layers" if numbers.is_number(headline.ratio) else ""
    gone = 1 - headline.total_after / headline.total_before if headline.total_before else 0.0
    return f"has {numbers.percent(gone)} fewer parameters" if gone > 0 else ""


def _speed(row: Row | None) -> str:
    change = before_after.change(row.dense, row.pruned, row.unit) if row is not None else numbers.MISSING
    if change == numbers.MISSING:
        return ""
    return "is as fast as before" if change == before_after.UNCHANGED else f"is {change}"


def _quality(row: Row) -> str:
    before, after = row.dense or 0.0, row.pruned or 0.0
    shown = before_after.format_row(row)
    label = row.label[:1].lower() + row.label[1:]
    if shown.dense == shown.pruned:
        return f"{label} stays at {shown.pruned}."
    way = "rises" if after > before else "falls"
    better = "" if row.unit is Unit.ACCURACY else "; lower is better"
    return f"{label} {way} from {shown.dense} to {shown.pruned} ({shown.change}{better})."
