"""Pictures stay inside their frame, and their labels stay apart."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from tests.report.conftest import recovered_report

from loraprune.report import charts, svg
from loraprune.report.data import LayerWidth
from loraprune.report.layers_chart import layers_chart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loraprune.report.data import ReportData

SVG = "{http://www.w3.org/2000/svg}"
BOLD = 1.04


def pictures(data: ReportData) -> list[ElementTree.Element]:
    """Parse both sizes of all pictures of a report."""
    return [ElementTree.fromstring(text) for figure in charts.figures(data) for text in (figure.wide, figure.narrow)]


def extents(root: ElementTree.Element) -> Iterator[tuple[float, float, float, float]]:
    """Yield left, top, right and bottom of everything drawn."""
    for item in root.iter():
        name = item.tag.removeprefix(SVG)
        numbers = {key: float(value) for key, value in item.items() if re.fullmatch(r"-?[\d.]+", value)}
        if name == "rect":
            assert numbers["width"] >= 0
            assert numbers["height"] >= 0
            x, y = numbers["x"], numbers["y"]
            yield x, y, x + numbers["width"], y + numbers["height"]
        elif name == "line":
            yield numbers["x1"], numbers["y1"], numbers["x2"], numbers["y2"]
        elif name == "circle":
            x, y, r = numbers["cx"], numbers["cy"], numbers["r"]
            yield x - r, y - r, x + r, y + r
        elif name == "polyline":
            points = [[float(part) for part in point.split(",")] for point in item.attrib["points"].split()]
            xs, ys = [point[0] for point in points], [point[1] for point in points]
            yield min(xs), min(ys), max(xs), max(ys)
        elif name == "text":
            left, right = text_span(item)
            yield left, numbers["y"] - svg.FONT_SIZE, right, numbers["y"] + 4


def text_span(item: ElementTree.Element) -> tuple[float, float]:
    """Estimate where a text begins and ends."""
    x, width = float(item.attrib["x"]), svg.text_width(item.text or "") * BOLD
    shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[item.attrib["text-anchor"]]
    return x - shift * width, x + (1 - shift) * width


def test_everything_stays_inside_the_frame(any_report: ReportData) -> None:
    for root in pictures(any_report):
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        for left, top, right, bottom in extents(root):
            assert -0.01 <= left <= right <= width + 0.01
            assert -0.01 <= min(top, bottom) <= max(top, bottom) <= height + 0.01


def test_labels_on_one_line_do_not_overlap(any_report: ReportData) -> None:
    for root in pictures(any_report):
        lines: dict[str, list[tuple[float, float]]] = {}
        for item in root.iter(f"{SVG}text"):
            lines.setdefault(item.attrib["y"], []).append(text_span(item))
        for spans in lines.values():
            assert all(first[1] < second[0] for first, second in pairwise(sorted(spans)))


def test_pictures_hold_no_undefined_numbers(any_report: ReportData) -> None:
    for figure in charts.figures(any_report):
        assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', figure.wide + figure.narrow)


def test_pictures_have_a_description_and_tooltips(sample: ReportData) -> None:
    for root in pictures(sample):
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20
        assert root.find(f".//{SVG}title") is not None


def test_a_long_run_makes_no_large_picture(any_report: ReportData) -> None:
    assert all(len(figure.wide) < 120_000 for figure in charts.figures(any_report))


def test_cuts_are_marked_in_both_panels(sample: ReportData) -> None:
    run = pictures(sample)[0]
    marks = [item for item in run.iter(f"{SVG}line") if item.attrib["class"] == "cut"]
    assert len(marks) == 2 * len(sample.cuts)


def test_bars_show_kept_and_removed_in_proportion() -> None:
    root = ElementTree.fromstring(layers_chart([LayerWidth(layer=0, kind="heads", total=8, kept=6)], 500))
    heights = {item.attrib["class"]: float(item.attrib["height"]) for item in root.iter(f"{SVG}rect")}
    assert heights["kept"] == pytest.approx(3 * heights["removed"])


def test_text_in_pictures_is_escaped() -> None:
    text = layers_chart([LayerWidth(layer=0, kind='<b a="1">', total=2, kept=1)], 500)
    assert "<b" not in text
    ElementTree.fromstring(text)


def test_a_run_that_prunes_nothing_is_drawn_as_its_loss_alone(sample: ReportData) -> None:
    (with_share, *_), (alone,) = charts.figures(sample), charts.figures(recovered_report())
    heights = [
        float(ElementTree.fromstring(figure.wide).attrib["viewBox"].split()[3]) for figure in (with_share, alone)
    ]
    assert heights[1] < heights[0]
    assert "Share removed" in with_share.wide
    assert "removed" not in alone.wide + alone.narrow
    assert alone.wide.count("training step") >= 1
    assert "Step 1" in alone.wide
