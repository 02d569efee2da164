"""Pictures say what the data says, to eyes, to a screen reader and under the pointer."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sample_reports import recovered_report

from loraprune.record.report_data import Cut, GroupMap, HistoryPoint, Importance, LayerWidth, RefitError, Row, Unit
from loraprune.report import page as charts
from loraprune.report.figure import NONZERO_WEIGHTS
from loraprune.report.figures import training
from loraprune.report.figures.group_map import map_figure
from loraprune.report.figures.importance import importance_figure, power_of_ten
from loraprune.report.figures.phases import phases_figure
from loraprune.report.figures.repair import refit_figure, refit_table
from loraprune.report.figures.stability import stability_figure
from loraprune.report.figures.task_scores import scores_figure
from loraprune.report.figures.widths import layers_figure

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData

SVG = "{http://www.w3.org/2000/svg}"


def pictures(page: str) -> list[ElementTree.Element]:
    """Parse all pictures of a page."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


def tips(root: ElementTree.Element) -> list[str]:
    """All that a picture tells under the pointer."""
    return [
        f"{zone.get('data-head', '')}/{text}"
        for zone in root.iter(f"{SVG}rect")
        if zone.get("class") == "zone"
        for text in zone.attrib["data-tips"].split("|")
    ]


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_every_picture_is_described_and_tells_more_under_the_pointer(sample_page: str) -> None:
    found = pictures(sample_page)
    assert len(found) == 10
    for root in found:
        assert root.attrib["role"] == "img"
        assert re.search(r"\d", root.attrib["aria-label"])
        assert tips(root)


def test_zones_lie_inside_their_picture(any_page: str) -> None:
    for root in pictures(any_page):
        _, _, width, height = (float(part) for part in root.attrib["viewBox"].split())
        for zone in root.iter(f"{SVG}rect"):
            if zone.get("class") == "zone":
                x, y, wide, high = (float(zone.attrib[name]) for name in ("x", "y", "width", "height"))
                assert -0.1 <= x <= x + wide <= width + 0.1
                assert -0.1 <= y <= y + high <= height + 0.1
                assert wide > 0
                assert high > 0


def test_pictures_hold_no_undefined_numbers(any_page: str) -> None:
    for text in re.findall(r"<svg.*?</svg>", any_page, flags=re.DOTALL):
        assert not re.search(r"\b(nan|inf|None)\b", text)


def test_a_large_model_and_a_long_run_make_no_large_page(any_page: str) -> None:
    assert len(any_page) < 1_000_000


def test_ids_are_one_of_a_kind_on_a_page_and_every_reference_finds_one(any_page: str) -> None:
    ids = re.findall(r' id="([^"]+)"', any_page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', any_page)) == set(ids)


def test_colors_are_those_of_the_page(any_page: str) -> None:
    for text in re.findall(r"<svg.*?</svg>", any_page, flags=re.DOTALL):
        assert "#0a00" not in text
        assert not set(re.findall(r'(?:fill|stroke): (?!none|var)([^;"]+)', text))


def test_cuts_are_marked_in_both_panels(sample: ReportData) -> None:
    picture = training.training_figure(sample)
    assert picture.markup.count("stroke-dasharray: 2,3") == 2 * len(sample.cuts)
    assert "Vertical lines mark cuts" in picture.caption
    assert picture.markup.count("<use") > picture.markup.count("stroke-dasharray: 2,3")


def test_the_description_of_a_run_counts_all_of_its_steps(sample: ReportData) -> None:
    assert "over 150 training steps" in training.training_description(sample)
    assert "over 155 training steps" in training.training_description(replace(sample, steps=155))


def test_the_share_rises_at_the_cuts_whether_or_not_their_steps_were_logged(sample: ReportData) -> None:
    logged = replace(sample, history=tuple(point for point in sample.history if point.step % 50 == 0))
    picture = training.training_figure(logged).markup
    drawn_paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--accent\)', picture)
    assert max(path.count("L") for path in drawn_paths) >= 2 * len(sample.cuts)


def test_a_run_that_prunes_nothing_is_drawn_as_its_loss_alone(sample: ReportData) -> None:
    report = recovered_report()
    (section,) = charts.sections(report)
    alone = training.training_figure(report)
    assert section.figures[0] == alone
    both = training.training_figure(sample)
    heights = [float(drawn(figure.markup).attrib["viewBox"].split()[3]) for figure in (both, alone)]
    assert heights[1] < heights[0]
    assert "Share removed" in both.markup
    assert "removed" not in alone.markup
    assert "training step" in alone.markup


def test_bars_show_kept_and_removed_in_proportion() -> None:
    figure = layers_figure([LayerWidth(layer=0, kind="heads", total=8, kept=6)])
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: var\(--(accent|removed)\)', figure.markup)
    heights = {}
    for path, color in paths:
        ys = [float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", path)]
        heights[color] = max(ys) - min(ys)
    assert heights["accent"] == pytest.approx(0.75 * heights["removed"], rel=0.01)


def test_of_a_sparse_model_the_bars_are_zeros_by_layer() -> None:
    widths = [
        LayerWidth(layer=layer, kind=NONZERO_WEIGHTS, total=1000, kept=kept) for layer, kept in ((0, 250), (1, 500))
    ]
    figure = layers_figure(widths)
    root = drawn(figure.markup)
    assert figure.title == "Zeros in each layer"
    assert [name for _, name in figure.legend] == ["nonzero", "zero"]
    assert (
        root.attrib["aria-label"] == "Zeros in each of 2 layers: between 50.0 % and 75.0 % of the weights of a layer."
    )
    assert "/Layer 0: 750 of 1,000 weights are zero (75.0 %)" in tips(root)


@pytest.mark.parametrize(("steps", "lines"), [(19, [(2, 1)]), (20, [(1, 0.45), (2, 1)]), (400, [(1, 0.45), (2, 1)])])
def test_a_loss_of_some_length_is_smoothed_over_the_raw_line(steps: int, lines: list[tuple[float, float]]) -> None:
    history = tuple(HistoryPoint(step=step, loss=2.0 + step % 2, ratio=0.0) for step in range(1, steps + 1))
    data = replace(recovered_report(), evaluations=(), history=history)
    styles = re.findall(r'style="fill: none; stroke: var\(--accent\)([^"]*)"', training.training_figure(data).markup)
    found = []
    for style in styles:
        width, alpha = (re.search(rf"{name}: ([\d.]+)", style) for name in ("stroke-width", "stroke-opacity"))
        found.append((float(width[1]) if width else 1.0, float(alpha[1]) if alpha else 1.0))
    assert found == lines


def test_a_map_tells_each_cell_and_says_where_most_went() -> None:
    maps = [
        GroupMap(kind="channels", layer=1, kept=(1.0, 0.5), groups_per_cell=8),
        GroupMap(kind="channels", layer=0, kept=(0.25, 0.0), groups_per_cell=8),
    ]
    widths = [LayerWidth(layer=layer, kind="channels", total=14, kept=kept) for layer, kept in ((0, 2), (1, 11))]
    figure = map_figure(maps, widths)
    root = drawn(figure.markup)
    assert root.attrib["aria-label"] == (
        "Map of the channels that were kept, in 2 rows: least in layer 0 (2 of 14), most in layer 1 (11 of 14)."
    )
    assert tips(root) == [
        "Layer 0 (2 of 14 kept)/25.0 %",
        "Layer 0 (2 of 14 kept)/0.0 %",
        "Layer 1 (11 of 14 kept)/100.0 %",
        "Layer 1 (11 of 14 kept)/50.0 %",
    ]
    assert 'data-columns="channels 0–7|channels 8–13"' in figure.markup
    assert "each cell 8 neighbors" in figure.caption


def test_the_map_of_single_groups_says_kept_or_removed_and_rows_may_differ_in_length() -> None:
    maps = [GroupMap(kind="heads", layer=0, kept=(1.0,)), GroupMap(kind="heads", layer=0, kept=(0.0, 1.0))]
    root = drawn(map_figure(maps).markup)
    assert tips(root) == ["Layer 0 (100.0 % kept)/kept", "Layer 0 (50.0 % kept)/removed", "Layer 0 (50.0 % kept)/kept"]


def test_a_map_takes_the_place_of_the_widths_where_layers_have_several_groups(sample: ReportData) -> None:
    titles = [figure.title for section in charts.sections(sample) for figure in section.figures]
    assert "Which KV heads were kept" in titles
    assert "Heads in each layer" not in titles
    blocks = tuple(LayerWidth(layer=layer, kind="blocks", total=1, kept=layer % 2) for layer in range(4))
    maps = tuple(GroupMap(kind="blocks", layer=layer, kept=(float(layer % 2),)) for layer in range(4))
    report = replace(sample, layers=blocks, maps=maps, importance={}, history=(), refit_errors=(), cuts=(), phases={})
    (section,) = charts.sections(report)
    assert [figure.title for figure in section.figures] == ["Blocks in each layer"]


def test_stability_is_drawn_from_the_second_cut_on_and_tabulated() -> None:
    cuts = (
        Cut(step=5, ratio=0.1),
        Cut(step=10, ratio=0.2, stability={"heads": 0.5, "channels": -0.25}),
        Cut(step=1500, ratio=0.3, stability={"heads": 1.0}),
    )
    figure = stability_figure(cuts)
    assert figure is not None
    assert figure.numbers is not None
    assert figure.numbers.rows == (("10", "0.500", "\N{MINUS SIGN}0.250"), ("1,500", "1.00", "\N{EN DASH}"))
    assert drawn(figure.markup).attrib["aria-label"] == (
        "Rank correlation of the scores between consecutive cuts: "
        "KV heads between 0.500 and 1.00, 1.00 at the last cut; "
        "channels between \N{MINUS SIGN}0.250 and \N{MINUS SIGN}0.250, \N{MINUS SIGN}0.250 at the last cut."
    )
    assert stability_figure(cuts[:1]) is None


def test_refit_errors_are_those_of_the_last_cut_and_the_table_has_all() -> None:
    errors = [
        RefitError(step=step, kind="heads", layer=layer, cut=0.1 * (layer + 1), repaired=0.01 * step)
        for step in (5, 10)
        for layer in (1, 0)
    ]
    figure = refit_figure(errors)
    assert figure.numbers is not None
    assert figure.numbers.rows == (("0", "10", "10.0 %", "10.0 %"), ("1", "10", "20.0 %", "10.0 %"))
    assert drawn(figure.markup).attrib["aria-label"] == (
        "Relative error in 2 layers after cutting KV heads: 10.0 % to 20.0 % without repair, 10.0 % to 10.0 % with it."
    )
    assert [row[:4] for row in refit_table(errors).rows] == [
        ("5", "KV heads", "15.0 %", "5.0 %"),
        ("10", "KV heads", "15.0 %", "10.0 %"),
    ]


def test_a_layer_that_the_last_cut_left_as_it_was_is_shown_at_its_own_last_cut() -> None:
    errors = [
        RefitError(step=step, kind="heads", layer=layer, cut=0.01 * step, repaired=None)
        for step, layer in ((5, 0), (5, 1), (10, 1), (1500, 2))
    ]
    figure = refit_figure(errors)
    assert figure.numbers is not None
    assert [row[:2] for row in figure.numbers.rows] == [("0", "5"), ("1", "10"), ("2", "1,500")]
    assert "(each layer's last cut, after steps 5 to 1,500)" in figure.caption


def test_errors_stand_in_the_order_of_the_maps_whatever_was_cut_first(sample: ReportData) -> None:
    errors = tuple(RefitError(step=1, kind=kind, layer=0, cut=0.5) for kind in ("other", "channels", "heads"))
    titles = [figure.title for figure in charts.sections(replace(sample, refit_errors=errors))[1].figures]
    assert titles[-3:] == ["Error after cutting KV heads", "Error after cutting channels", "Error after cutting other"]


def test_errors_without_repair_have_one_mark_a_layer() -> None:
    figure = refit_figure([RefitError(step=0, kind="heads", layer=0, cut=0.1)])
    assert "repaired" not in figure.markup
    assert "with it" not in figure.markup
    assert "step" not in figure.caption


def test_scores_are_told_for_both_models_and_long_names_are_shortened() -> None:
    name = "a task with a name that takes very much room, more than two fifths of the picture"
    figure = scores_figure([Row(label=name, unit=Unit.ACCURACY, dense=0.5, pruned=0.25)], "dense", "pruned")
    assert drawn(figure.markup).attrib["aria-label"] == (
        f"Accuracy on 1 task. {name}: 50.0 % dense, 25.0 % pruned (\N{MINUS SIGN}25.0 points)."
    )
    texts = [item.text for item in drawn(figure.markup).iter(f"{SVG}text")]
    assert name not in texts
    assert "50.0 %" in texts


def test_phases_of_unknown_length_are_left_out() -> None:
    figure = phases_figure({"loading": 1.0, "training": float("nan"), "cuts": 3.0})
    assert figure is not None
    assert figure.caption == "4.0 s in total."
    assert "training" not in figure.markup
    assert phases_figure({"training": float("nan")}) is None


@given(st.lists(st.tuples(st.floats(), st.booleans()), max_size=12))
@settings(max_examples=12, deadline=None)
def test_any_scores_can_be_drawn(pairs: list[tuple[float, bool]]) -> None:
    scores, kept = tuple(score for score, _ in pairs), tuple(flag for _, flag in pairs)
    figure = importance_figure([Importance(kind="heads", layer=0, scores=scores, kept=kept)])
    label = drawn(figure.markup).attrib["aria-label"]
    finite = [flag for score, flag in pairs if math.isfinite(score)]
    assert f"{len(finite)}, {sum(finite)} kept and {len(finite) - sum(finite)} removed" in label


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-7, "10⁻⁷"), (2e-5, "2·10⁻⁵"), (0.25, "0.25"), (1e-3, "0.001"), (2000.0, "2,000"), (0.0, "")],
)
def test_ticks_of_scores_are_powers_or_plain_numbers(value: float, text: str) -> None:
    assert power_of_ten(value) == text


def test_text_in_pictures_is_escaped() -> None:
    figure = layers_figure([LayerWidth(layer=0, kind='<b a="1">|', total=2, kept=1)])
    assert "<b" not in figure.markup
    (text,) = tips(drawn(figure.markup))
    assert text == '/Layer 0: 1 of 2 <b a="1">\N{BROKEN BAR} kept (50.0 %)'
