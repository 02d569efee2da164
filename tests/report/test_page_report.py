"""The page is whole, needs nothing but itself and shows user text as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from tests.sample_reports import bare_report, recovered_report

from loraprune.record.report_data import Completion, Cut, GroupMap, LayerWidth, RefitError, ReportData, Row, Unit
from loraprune.report import page as html

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


def prose(text: str) -> str:
    """All that a page says, without names of colors."""
    return re.sub(r"var\(--[\w-]+\)", "", text.partition("</style>")[2])


def test_every_page_parses_and_refers_to_nothing_outside(any_page: str) -> None:
    page = Page(any_page)
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}
    references = {value or "" for name, value in page.attributes if name == "xlink:href"}
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in references)
    values = [value or "" for name, value in page.attributes if not name.startswith("xmlns")]
    assert not [value for value in values if re.search(r"https?://", value)]
    assert not re.search(r"url\((?!#)", any_page)
    assert "@import" not in any_page


def test_no_page_shows_nan_or_none(any_page: str) -> None:
    assert not re.search(r"\b(nan|inf|None)\b", any_page.partition("<script>")[0])


@pytest.mark.parametrize("field", ["title", "model", "created", "command"])
def test_text_fields_are_escaped(field: str) -> None:
    nasty = '</title></pre><script>alert("1")</script>'
    page = Page(html.render_report(replace(bare_report(), **{field: nasty})))  # type: ignore[arg-type]
    assert page.tags.count("script") == 1


def test_nested_text_is_escaped() -> None:
    nasty = "<script>alert('1')</script>&amp;"
    data = replace(
        bare_report(),
        rows=(Row(label=nasty, detail=nasty, unit=Unit.PERPLEXITY, dense=1.0, pruned=1.0),),
        completions=(Completion(prompt=nasty, dense=nasty, unrecovered=nasty, pruned=nasty),),
        layers=(LayerWidth(layer=0, kind=nasty, total=2, kept=1),),
        cuts=(Cut(step=1, ratio=0.5, widths={nasty: (1,)}),),
        notes=(nasty,),
        maps=(GroupMap(kind=nasty, layer=0, kept=(1.0, 0.0)),),
        refit_errors=(RefitError(step=1, kind=nasty, layer=0, cut=0.5),),
        scores=(Row(label=nasty, detail=nasty, unit=Unit.ACCURACY, dense=0.5, pruned=0.5),),
        phases={nasty: 1.0},
        settings={nasty: {nasty: nasty}},
        versions={nasty: nasty},
        machine={nasty: nasty},
    )
    page = Page(html.render_report(data))
    assert page.tags.count("script") == 1
    assert page.shown.count(nasty) >= 20


def test_lone_surrogates_in_a_completion_do_not_break_the_page(tmp_path: Path) -> None:
    broken = Completion(prompt="a", dense="\ud83d", pruned="b")
    html.write_report(replace(bare_report(), completions=(broken,)), tmp_path / "report.html")
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert ReportData.from_json(tmp_path / "report.json").completions[0].dense == "?"


def test_page_and_data_are_written_side_by_side(tmp_path: Path) -> None:
    report = recovered_report()
    path = tmp_path / "new" / "report.html"
    html.write_report(report, path)
    assert {item.name for item in path.parent.iterdir()} == {"report.html", "report.json"}
    assert path.read_text(encoding="utf-8") == html.render_report(report)
    assert ReportData.from_json(path.with_suffix(".json")) == report


def test_a_path_that_is_no_page_is_refused(sample: ReportData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.html"):
        html.write_report(sample, tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def test_sections_without_data_are_left_out(sample: ReportData, sample_page: str) -> None:
    whole = Page(sample_page).shown
    bare = ReportData(title="t", model="m", created="yesterday", headline=sample.headline)
    empty = Page(html.render_report(bare)).shown
    for heading in ("Before and after", "Task scores", "The run", "What was cut", "Completions", "How to repeat it"):
        assert heading in whole
        assert heading not in empty


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
    assert heads[1:4] == ["before", "after", "change"]
    assert {value for name, value in page.attributes if name == "data-head"} == {"before", "after", "change"}
    assert "<h3>Before</h3>" in text
    assert "<h3>After</h3>" in text
    for word in ("removed", "pruned", "dense", "Cuts", "Dense", "Pruned"):
        assert word not in prose(text)


def test_a_page_on_zeros_from_training_says_nothing_of_removing(sample: ReportData) -> None:
    cuts = tuple(replace(cut, widths={}, stability={}) for cut in sample.cuts)
    headline = replace(sample.headline, sparsity="pst, 50%")
    report = replace(
        sample, headline=headline, cuts=cuts, layers=(), importance={}, maps=(), refit_errors=(), after="sparse"
    )
    body = prose(html.render_report(report))
    assert "Share of zeros" in body
    assert "Masks" in body
    for word in ("removed", "Cut at", "Cuts", "without training"):
        assert word not in body


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("def add(a, b):\n", True),
        ("import json", True),
        ("x = 1\nif x:\n    ", True),
        ("int main(void) {", True),
        ("Once upon a time", False),
        ("A class of ten children went to import shops.", False),
        ("from here on: the story (old)", False),
    ],
)
def test_completions_of_code_keep_their_indentation_in_a_fixed_width_font(prompt: str, code: bool) -> None:
    answers = Completion(prompt=prompt, dense="    return 1", pruned="    return 2")
    text = html.render_report(replace(bare_report(), completions=(answers,)))
    assert ('class="completion code"' in text) is code
    assert ("<p>    return 1</p>" in text) is code
