from __future__ import annotations

import pytest
from tests.models import tiny_model

from loraprune.record.report_data import Row, Unit
from loraprune.report.card import _removed_kinds, with_rows
from loraprune.structure.describe import describe

CARD = """# A model

| | dense | pruned |
|---|---|---|
| parameters | 100 | 60 |
| mine@128 (perplexity, 9 tokens) | 5.00 | 6.00 |

Removed: half.

| another | table |
|---|---|
"""


def row(label: str, dense: float | None = 7.0, pruned: float | None = 8.0, unit: Unit = Unit.PERPLEXITY) -> Row:
    return Row(label=label, unit=unit, detail="perplexity, 10 tokens", dense=dense, pruned=pruned)


def test_new_rows_go_below_the_others() -> None:
    changed = with_rows(CARD, [row("ptb@128"), row("piqa", 0.5, None, Unit.ACCURACY)])
    table = changed.partition("|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == [
        "| parameters | 100 | 60 |",
        "| mine@128 (perplexity, 9 tokens) | 5.00 | 6.00 |",
        "| ptb@128 (perplexity, 10 tokens) | 7.00 | 8.00 |",
        "| piqa (perplexity, 10 tokens) | 50.00% | – |",
    ]
    assert changed.startswith("# A model\n")
    assert changed.endswith(CARD.partition("6.00 |\n")[2])


def test_a_row_of_the_same_name_gives_way_however_it_was_measured() -> None:
    once = with_rows(CARD, [row("mine@128")])
    assert "| mine@128 (perplexity, 10 tokens) | 7.00 | 8.00 |" in once
    assert "9 tokens" not in once
    assert with_rows(once, [row("mine@128")]) == once


def test_a_card_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table of measures"):
        with_rows("# A model\n\nNothing.\n", [row("ptb@128")])


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        ({"heads": (4, 4), "channels": (8, 6)}, "FFN channels"),
        ({"heads": (2, 2), "channels": (16, 16)}, "attention heads"),
        ({"heads": (2, 2), "channels": (8, 8)}, "attention heads and FFN channels"),
        ({}, "attention heads and FFN channels"),
    ],
)
def test_only_kinds_that_lost_groups_are_named(widths: dict[str, tuple[int, ...]], text: str) -> None:
    structure = describe(tiny_model(intermediate_size=16))
    assert _removed_kinds(structure, widths) == text
