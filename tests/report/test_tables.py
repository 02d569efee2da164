"""The tables of a report say in numbers what its pictures show."""

from __future__ import annotations

from loraprune.record.report_data import Cut, LayerWidth
from loraprune.report import tables


def test_the_table_of_cuts_shows_one_width_or_a_range() -> None:
    cuts = (Cut(step=1000, ratio=0.25, widths={"heads": (4, 4), "channels": (96, 1024)}), Cut(step=2000, ratio=0.5))
    grid = tables.cut_grid(cuts)
    assert grid.heads == ("step", "removed", "KV heads", "channels")
    assert grid.rows == (("1,000", "25.0 %", "4", "96 to 1,024"), ("2,000", "50.0 %", "\N{EN DASH}", "\N{EN DASH}"))


def test_the_table_of_widths_has_a_column_a_kind() -> None:
    layers = (
        LayerWidth(layer=1, kind="heads", total=4, kept=3),
        LayerWidth(layer=0, kind="channels", total=1408, kept=704),
        LayerWidth(layer=0, kind="heads", total=4, kept=4),
    )
    grid = tables.width_grid(layers)
    assert grid.heads == ("layer", "KV heads", "channels")
    assert grid.rows == (("0", "4 of 4", "704 of 1,408"), ("1", "3 of 4", "\N{EN DASH}"))


def test_two_dimensions_of_a_kind_in_one_layer_share_a_cell_and_kinds_are_words() -> None:
    layers = (
        LayerWidth(layer=0, kind="expert_channels", total=64, kept=32),
        LayerWidth(layer=0, kind="expert_channels", total=16, kept=8),
    )
    grid = tables.width_grid(layers)
    assert grid.heads == ("layer", "expert channels")
    assert grid.rows == (("0", "32 of 64, 8 of 16"),)


def test_settings_are_flattened_with_dotted_names() -> None:
    settings = {"a": {"b": {"c": 1}, "d": [1, None, True]}, "e": {}, "f": False}
    assert tables.flatten(settings) == [("a.b.c", "1"), ("a.d", "1, \N{EN DASH}, yes"), ("e", "{}"), ("f", "no")]


def test_the_table_of_cuts_tells_how_long_they_took_where_that_is_known() -> None:
    grid = tables.cut_grid((Cut(step=1, ratio=0.5, seconds=75.0), Cut(step=2, ratio=0.5)), "zero")
    assert grid.heads == ("step", "zero", "took")
    assert [row[-1] for row in grid.rows] == ["1 min 15 s", "\N{EN DASH}"]
