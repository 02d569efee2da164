"""The page and the picture of a comparison: whole, escaped, readable in a browser, and fit for a paper."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report.browser import needs_browser, visit
from tests.report.test_page_report import Page

from loraprune.record.report_data import Unit
from loraprune.report import drawing
from loraprune.report.comparison.figure import legend, write_picture
from loraprune.report.comparison.page import comparison_verdict, render_page, write_page
from loraprune.report.comparison.result import ComparedModel, Cost, Quality, RunGroup, RunsComparison

COSTS = (
    Cost(name="parameters", label="Parameters"),
    Cost(name="latency", label="Forward pass", detail="1 × 128 tokens, median"),
    Cost(name="seconds", label="Training time"),
)
# Runs as they come: many at one ratio, some far away. Parameters, latency, seconds, perplexity, fronts.
ROWS = {
    "fisher-20": (2.67e6, 9.4, 310.0, 6.91, ("parameters", "latency", "seconds")),
    "fisher-30": (2.41e6, 8.6, 305.0, 8.0, ("parameters", "latency", "seconds")),
    "fisher-50": (1.95e6, 7.1, 300.0, 11.98, ("parameters", "latency")),
    "lora-50": (1.95e6, 7.15, 372.0, 12.79, ()),
    "taylor-50": (1.94e6, 7.1, 420.0, 13.9, ("parameters",)),
    "magnitude-50": (1.95e6, 7.05, 280.0, 16.6, ("latency",)),
    "random-50": (1.95e6, 7.1, 275.0, 22.1, ()),
    "fisher-70": (1.5e6, 5.2, 290.0, 21.7, ("parameters", "latency")),
    "osscar-20": (2.68e6, 9.5, 25.0, 9.1, ("seconds",)),
    "flap-50": (1.96e6, 7.2, 12.0, 70.8, ("seconds",)),
}


def ten_runs() -> RunGroup:
    dense = ComparedModel(
        number=None,
        name="demo-llama",
        folder="demo-llama",
        what="dense",
        quality=4.09,
        costs={"parameters": 3.15e6, "latency": 11.8},
        best_for=("parameters", "latency"),
        bytes=12.6e6,
    )
    runs = [
        ComparedModel(
            number=number,
            name=name,
            folder=f"runs/{name}",
            what="50% pruned",
            quality=quality,
            costs={"parameters": parameters, "latency": latency, "seconds": seconds},
            best_for=best,
            bytes=4 * parameters,
            relative_latency=latency / 11.8,
        )
        for number, (name, (parameters, latency, seconds, quality, best)) in enumerate(ROWS.items(), start=1)
    ]
    quality = Quality(name="perplexity", label="held-out perplexity", unit=Unit.PERPLEXITY, detail="128-token segments")
    return RunGroup(base="demo-llama", quality=quality, costs=COSTS, models=(dense, *runs))


def odd_group() -> RunGroup:
    """A single sparse run without most figures, of a measure of which more is better."""
    nasty = "</title><script>alert(1)</script> & <b>"
    quality = Quality(name="acc", label="accuracy", unit=Unit.ACCURACY, higher_is_better=True)
    models = (
        ComparedModel(number=1, name=nasty, folder=nasty, what="2:4 sparse", quality=0.5, sparse=True),
        ComparedModel(number=2, name="b", folder="b", quality=None, costs={"parameters": 1.0}),
        ComparedModel(number=3, name="c", folder="c", quality=0.0, costs={"parameters": 5.0, "seconds": 3.0}),
    )
    costs = (COSTS[0], replace(COSTS[2], why_no_front="taken on different machines"))
    return RunGroup(base="", quality=quality, costs=costs, models=models, notes=("Something to know.",))


@pytest.fixture(scope="module")
def comparison() -> RunsComparison:
    return RunsComparison(groups=(ten_runs(),), created="2026-01-02T03:04:00+00:00", command="loraprune compare a b")


@pytest.fixture(scope="module")
def odd() -> RunsComparison:
    return RunsComparison(groups=(ten_runs(), odd_group()), notes=("x & y are kept apart.",))


@pytest.fixture(scope="module")
def page(comparison: RunsComparison) -> str:
    return render_page(comparison)


@pytest.fixture(scope="module")
def odd_page(odd: RunsComparison) -> str:
    return render_page(odd)


def test_every_page_parses_and_needs_nothing_but_itself(page: str, odd_page: str) -> None:
    for text in (page, odd_page):
        parsed = Page(text)
        assert not {"link", "img", "iframe", "object", "embed", "form"} & set(parsed.tags)
        assert parsed.tags.count("script") == 1
        assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"var\(--[\w-]+\)", "", text.partition("</style>")[2]))


def test_names_are_escaped(odd_page: str) -> None:
    assert "<script>alert" not in odd_page
    assert "&lt;script&gt;alert(1)" in odd_page
    assert "x &amp; y are kept apart." in odd_page


def test_the_table_shows_every_run_with_stars_where_the_front_is(page: str) -> None:
    shown = Page(page).shown
    for name in (*ROWS, "demo-llama"):
        assert name in shown
    assert shown.count("\N{BLACK STAR}") == 1 + 2 + sum(len(row[-1]) for row in ROWS.values())  # 1 in the legend
    assert "83.1 % of dense" not in shown
    assert "79.7 % of dense" in shown


def test_the_picture_says_in_words_what_it_shows(page: str) -> None:
    (label,) = set(re.findall(r'aria-label="(held-out perplexity against [^"]*)"', page))
    assert "against parameters, forward pass, training time." in label
    assert "3 fisher-50 (50% pruned): held-out perplexity 12.0, parameters 1.95 M \N{BLACK STAR}" in label


def test_the_pointer_finds_every_run_in_every_panel(page: str) -> None:
    for name in ROWS:
        assert len(re.findall(rf'data-tips="\d+ {name} ', page)) == 3


@pytest.mark.parametrize(
    ("higher", "expected"),
    [
        (
            False,
            "Take fisher-20 for quality (held-out perplexity 6.91; dense: 4.09); fisher-70, at 21.7, for size (1.50 M "
            "parameters) and speed (5.20 ms); and flap-50, at 70.8, for a short training time (12 s).",
        ),
        (
            True,
            "Take flap-50 for quality (held-out perplexity 70.8; dense: 4.09) and a short training time (12 s); and "
            "fisher-70, at 21.7, for size (1.50 M parameters) and speed (5.20 ms).",
        ),
    ],
)
def test_the_conclusion_says_which_run_is_best_for_what(higher: bool, expected: str) -> None:
    group = ten_runs()
    assert comparison_verdict(replace(group, quality=replace(group.quality, higher_is_better=higher))) == expected


def test_the_conclusion_about_a_single_run_names_its_quality() -> None:
    group = ten_runs()
    one = replace(group, models=group.models[:2])
    assert comparison_verdict(one) == "fisher-20 has held-out perplexity 6.91 (dense: 4.09)."
    assert comparison_verdict(replace(one, models=one.models[1:])) == "fisher-20 has held-out perplexity 6.91."


def test_of_runs_that_cost_the_same_the_conclusion_takes_the_better_one() -> None:
    group = ten_runs()
    models = [replace(model, costs={"parameters": 2.0}) for model in group.models[1:]]
    verdict = comparison_verdict(replace(group, models=(group.models[0], *reversed(models))))
    assert verdict.endswith("and size (2 parameters).")
    assert verdict.startswith("Take fisher-20 for quality")


def test_names_of_data_keep_their_case_in_headings() -> None:
    quality = Quality(name="ptb.txt@64", label="ptb.txt@64 perplexity", unit=Unit.PERPLEXITY)
    text = render_page(RunsComparison(groups=(replace(ten_runs(), quality=quality),)))
    assert "Ptb.txt" not in text
    assert "ptb.txt@64 perplexity" in Page(text).shown


def test_shares_of_a_model_that_was_pruned_before_are_not_called_those_of_a_dense_one() -> None:
    group = ten_runs()
    before = replace(group.models[0], name="sparse", what="2:4 sparse by wanda")
    shown = Page(render_page(RunsComparison(groups=(replace(group, models=(before, *group.models[1:])),)))).shown
    assert "79.7 % of sparse" in shown
    assert "of dense" not in shown


def test_the_legend_names_marks_that_there_are() -> None:
    group = ten_runs()
    dense, first, *_ = group.models
    every = replace(first, best_for=tuple(first.costs))
    assert [line.get_label() for line in legend(replace(group, models=(dense, every)))] == [
        "on the Pareto front",
        "dense model",
    ]
    assert "other run" in [line.get_label() for line in legend(group)]


def test_a_group_without_any_figure_has_a_page(odd: RunsComparison) -> None:
    models = tuple(replace(model, quality=None, best_for=()) for model in odd.groups[1].models)
    assert "No run has a finite accuracy." in render_page(
        RunsComparison(groups=(replace(odd.groups[1], models=models),))
    )


def test_a_page_of_another_name_is_refused(comparison: RunsComparison, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not end in \.html"):
        write_page(comparison, tmp_path / "page.htm")
    assert not list(tmp_path.iterdir())


class TestPictureFile:
    @pytest.mark.parametrize(
        ("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG")]
    )
    def test_every_format_is_written(self, tmp_path: Path, suffix: str, begins: bytes) -> None:
        write_picture(RunsComparison(groups=(odd_group(),)), tmp_path / f"picture.{suffix}")
        assert (tmp_path / f"picture.{suffix}").read_bytes().startswith(begins)
        assert len(list(tmp_path.iterdir())) == 1

    def test_its_colors_are_those_of_the_light_page(self, odd: RunsComparison, tmp_path: Path) -> None:
        write_picture(odd, tmp_path / "picture.svg")
        text = (tmp_path / "picture.svg").read_text()
        assert not [color for color in drawing.VARIABLES if color in text]
        assert "#3b7ddd" in text

    def test_the_same_picture_is_the_same_file(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            write_picture(RunsComparison(groups=(odd_group(),)), tmp_path / folder / "picture.svg")
        assert (tmp_path / "a/picture.svg").read_bytes() == (tmp_path / "b/picture.svg").read_bytes()

    def test_a_format_that_there_is_not_is_refused(self, comparison: RunsComparison, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"\.svg, \.png, \.pdf"):
            write_picture(comparison, tmp_path / "picture.jpg")


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
def test_the_page_fits_and_answers_in_a_browser(
    page: str, odd_page: str, tmp_path: Path, width: int, dark: bool
) -> None:
    for text, pictures in ((page, 1), (odd_page, 2)):
        found = visit(text, tmp_path, width, dark)
        assert found.console == []
        assert found.facts["overflow"] <= 0
        assert found.facts["pictures"] == pictures
        assert found.facts["outside"] == []
        assert found.facts["overlapping"] == []
        assert found.facts["told"][0][0].startswith("demo-llama (dense): held-out perplexity 4.09, parameters 3.15 M")
        assert all(inside for _, inside in found.facts["told"])
