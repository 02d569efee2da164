"""The page is whole, needs nothing but itself and shows user text as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from tests.report.conftest import recovered_report

from loraprune.report import html
from loraprune.report.data import Completion, Cut, LayerWidth, ReportData, Row, Unit

if TYPE_CHECKING:
    from pathlib import Path

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects tags and text, and insists that tags close in order."""

    def __init__(self, text: str) -> None:
        """Parse a whole page."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its attributes."""
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that closes itself."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost tag, which has to be this one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.text.append(data)

    @property
    def shown(self) -> str:
        """All text of the page."""
        return "".join(self.text)


def test_every_page_parses_and_refers_to_nothing_outside(any_report: ReportData) -> None:
    text = html.render_report(any_report)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & {name for name, _ in page.attributes}
    values = [value or "" for name, value in page.attributes if name != "xmlns"]
    assert not [value for value in values if re.search(r"https?://", value)]
    assert "url(" not in text
    assert "@import" not in text


def test_no_page_shows_nan_or_none(any_report: ReportData) -> None:
    assert not re.search(r"\b(nan|inf|None)\b", html.render_report(any_report))


@pytest.mark.parametrize("field", ["title", "model", "created", "command"])
def test_text_fields_are_escaped(sample: ReportData, field: str) -> None:
    nasty = '</title></pre><script>alert("1")</script>'
    page = Page(html.render_report(replace(sample, **{field: nasty})))  # type: ignore[arg-type]
    assert "script" not in page.tags


def test_nested_text_is_escaped(sample: ReportData) -> None:
    nasty = "<script>alert('1')</script>&amp;"
    data = replace(
        sample,
        rows=(Row(label=nasty, detail=nasty, unit=Unit.PERPLEXITY, dense=1.0, pruned=1.0),),
        completions=(Completion(prompt=nasty, dense=nasty, unrecovered=nasty, pruned=nasty),),
        layers=(LayerWidth(layer=0, kind=nasty, total=2, kept=1),),
        cuts=(Cut(step=1, ratio=0.5, widths={nasty: (1,)}),),
        notes=(nasty,),
        settings={nasty: {nasty: nasty}},
        versions={nasty: nasty},
        machine={nasty: nasty},
    )
    page = Page(html.render_report(data))
    assert "script" not in page.tags
    assert page.shown.count(nasty) >= 15


def test_lone_surrogates_in_a_completion_do_not_break_the_page(sample: ReportData, tmp_path: Path) -> None:
    broken = Completion(prompt="a", dense="\ud83d", pruned="b")
    html.write_report(replace(sample, completions=(broken,)), tmp_path / "report.html")
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ReportData.from_json(tmp_path / "report.json").completions[0].dense == "?"


def test_page_and_data_are_written_side_by_side(sample: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    html.write_report(sample, path)
    assert {item.name for item in path.parent.iterdir()} == {"report.html", "report.json"}
    assert path.read_text(encoding="utf-8") == html.render_report(sample)
    assert html.render_report(ReportData.from_json(path.with_suffix(".json"))) == html.render_report(sample)


def test_a_path_that_is_no_page_is_refused(sample: ReportData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.html"):
        html.write_report(sample, tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_the_page_begins_with_size_speed_and_quality(sample: ReportData) -> None:
    tiles = html.tiles(sample)
    assert [tile.label for tile in tiles] == ["Parameters", "File size", "Forward pass", "Perplexity"]
    assert [tile.change for tile in tiles][2:] == ["1.62\N{MULTIPLICATION SIGN} faster", "+57.0 %"]


def test_the_headline_does_without_rows(sample: ReportData) -> None:
    assert [tile.label for tile in html.tiles(replace(sample, rows=()))] == ["Parameters"]


def test_sections_without_data_are_left_out(sample: ReportData) -> None:
    whole = Page(html.render_report(sample)).shown
    bare = ReportData(title="t", model="m", created="yesterday", headline=sample.headline)
    empty = Page(html.render_report(bare)).shown
    for heading in ("Before and after", "The run", "Completions", "Record", "Importance of heads"):
        assert heading in whole
        assert heading not in empty


def test_the_table_of_cuts_shows_one_width_or_a_range() -> None:
    cuts = (Cut(step=1000, ratio=0.25, widths={"heads": (4, 4), "channels": (96, 1024)}), Cut(step=2000, ratio=0.5))
    grid = html.cut_grid(cuts)
    assert grid.heads == ("step", "removed", "heads", "channels")
    assert grid.rows == (("1,000", "25.0 %", "4", "96 to 1,024"), ("2,000", "50.0 %", "\N{EN DASH}", "\N{EN DASH}"))


def test_the_table_of_widths_has_a_column_a_kind() -> None:
    layers = (
        LayerWidth(layer=1, kind="heads", total=4, kept=3),
        LayerWidth(layer=0, kind="channels", total=1408, kept=704),
        LayerWidth(layer=0, kind="heads", total=4, kept=4),
    )
    grid = html.width_grid(layers)
    assert grid.heads == ("layer", "heads", "channels")
    assert grid.rows == (("0", "4 of 4", "704 of 1,408"), ("1", "3 of 4", "\N{EN DASH}"))


def test_two_dimensions_of_a_kind_in_one_layer_share_a_cell_and_kinds_are_words() -> None:
    layers = (
        LayerWidth(layer=0, kind="expert_channels", total=64, kept=32),
        LayerWidth(layer=0, kind="expert_channels", total=16, kept=8),
    )
    grid = html.width_grid(layers)
    assert grid.heads == ("layer", "expert channels")
    assert grid.rows == (("0", "32 of 64, 8 of 16"),)


def test_settings_are_flattened_with_dotted_names() -> None:
    settings = {"a": {"b": {"c": 1}, "d": [1, None, True]}, "e": {}, "f": False}
    assert html.flatten(settings) == [("a.b.c", "1"), ("a.d", "1, \N{EN DASH}, yes"), ("e", "{}"), ("f", "no")]


@pytest.mark.parametrize(
    ("iso", "text"),
    [
        ("2026-03-04T15:09:26+00:00", "4 March 2026, 15:09 UTC"),
        ("2026-03-04T15:09:26Z", "4 March 2026, 15:09 UTC"),
        ("2026-03-04T15:09:26", "4 March 2026, 15:09"),
        ("yesterday", "yesterday"),
    ],
)
def test_times_are_readable(iso: str, text: str) -> None:
    assert html.readable_time(iso) == text


def test_a_page_on_recovery_says_nothing_of_pruning() -> None:
    text = html.render_report(recovered_report())
    page = Page(text)
    assert "Tuned over 150 training steps" in page.shown
    heads = re.findall(r'<th scope="col">(.*?)</th>', text)
    assert heads[1:] == ["before", "after", "change"]
    assert {value for name, value in page.attributes if name == "data-head"} == {"before", "after", "change"}
    assert "<h3>Before</h3>" in text
    assert "<h3>After</h3>" in text
    body = text.partition("</style>")[2]
    for word in ("removed", "pruned", "dense", "Cuts", "Dense", "Pruned"):
        assert word not in body


def test_a_page_on_zeros_from_training_says_nothing_of_removing(sample: ReportData) -> None:
    cuts = tuple(replace(cut, widths={}) for cut in sample.cuts)
    headline = replace(sample.headline, sparsity="pst, 50%")
    report = replace(sample, headline=headline, cuts=cuts, layers=(), importance={})
    body = html.render_report(report).partition("</style>")[2]
    assert "Share of zeros" in body
    assert "Masks" in body
    for word in ("removed", "Cut at", "Cuts", "without training"):
        assert word not in body
