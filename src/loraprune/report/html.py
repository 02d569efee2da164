"""The report as one web page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from loraprune.report import atomic, comparison, numbers
from loraprune.report.charts import figures, in_words
from loraprune.report.data import Row, Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.report.data import Cut, LayerWidth, ReportData

_TILE_UNITS = (Unit.PARAMETERS, Unit.BYTES, Unit.MILLISECONDS, Unit.PERPLEXITY, Unit.ACCURACY)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the headline: what changed, by how much, from what to what."""

    label: str
    change: str
    before: str
    after: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A plain table: heads of the columns and the cells of every row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_report(data: ReportData, path: str | Path) -> None:
    """Write the page to ``path`` and the data as JSON beside it, under the same name with ``.json``.

    Each file appears complete or not at all; the page last.

    Raises:
        ValueError: ``path`` does not end in ``.html``.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"A report is a web page, but {path} does not end in .html. Call it {path.name}.html.")
    page = render_report(data)
    data.to_json(path.with_suffix(".json"))
    atomic.write_text(path, page)


def render_report(data: ReportData) -> str:
    """Render the page; all text of the data is escaped."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        data=data,
        created=readable_time(data.created),
        summary=comparison.summary(data),
        tiles=tiles(data),
        rows=comparison.format_rows(data),
        unrecovered=comparison.has_unrecovered(data),
        figures=figures(data),
        widths=width_grid(data.layers),
        cuts=cut_grid(data.cuts, "removed" if data.headline.sparsity is None else "zero"),
        settings=flatten(data.settings),
        markup=Markup,
    )


def tiles(data: ReportData) -> list[Tile]:
    """Choose the figures of the headline: the first row each of size, speed and quality, where there is one.

    Parameters are taken from the headline where no row has them.
    """
    headline = data.headline
    rows = [*data.rows]
    if not any(row.unit is Unit.PARAMETERS for row in rows):
        total = Row(label="Parameters", unit=Unit.PARAMETERS, dense=headline.total_before, pruned=headline.total_after)
        rows.insert(0, total)
    firsts = [next((row for row in rows if row.unit is unit), None) for unit in _TILE_UNITS]
    return [_tile(row) for row in firsts if row is not None]


def _tile(row: Row) -> Tile:
    text = comparison.format_row(row)
    return Tile(label=text.label, change=text.change, before=text.dense, after=text.pruned, detail=text.detail)


def width_grid(layers: Sequence[LayerWidth]) -> Grid:
    """Tabulate the widths of all layers, a column a kind: the pictures in numbers."""
    kinds = list(dict.fromkeys(item.kind for item in layers))
    cells: dict[tuple[int, str], list[str]] = {}
    for item in layers:
        cells.setdefault((item.layer, item.kind), []).append(f"{item.kept:,} of {item.total:,}")
    numbers_of_layers = sorted({item.layer for item in layers})
    # A layer may have several dimensions of a kind: a decoder's heads that look at itself and at the encoder.
    rows = (
        (str(layer), *(", ".join(cells.get((layer, kind), [numbers.MISSING])) for kind in kinds))
        for layer in numbers_of_layers
    )
    return Grid(heads=("layer", *map(in_words, kinds)), rows=tuple(rows))


def cut_grid(cuts: Sequence[Cut], gone: str = "removed") -> Grid:
    """Tabulate the cuts (or masks); widths that differ between layers are given as a range.

    Args:
        cuts: in the order made.
        gone: what became of the share.
    """
    kinds = list(dict.fromkeys(kind for cut in cuts for kind in cut.widths))
    rows = (
        (f"{cut.step:,}", numbers.percent(cut.ratio), *(_span(cut.widths.get(kind, ())) for kind in kinds))
        for cut in cuts
    )
    return Grid(heads=("step", gone, *map(in_words, kinds)), rows=tuple(rows))


def _span(widths: Sequence[int]) -> str:
    if not widths:
        return numbers.MISSING
    least, most = min(widths), max(widths)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def flatten(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Write nested settings as pairs of dotted name and text."""
    pairs = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{name}.")
        else:
            pairs.append((name, _setting(value)))
    return pairs


def _setting(value: object) -> str:
    if value is None or (isinstance(value, float) and not numbers.is_number(value)):
        return numbers.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    return str(value)


def readable_time(iso: str) -> str:
    """Write an ISO time for people, or leave a text that is none as it is."""
    try:
        time = datetime.fromisoformat(iso.replace("Z", "+00:00"))
    except ValueError:
        return iso
    return f"{time.day} {time:%B %Y, %H:%M %Z}".strip()


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
