from __future__ import annotations

import pytest
from tests.models import tiny_model

from loraprune.structure.describe import describe
from loraprune.structure.given_widths import completed_widths, parse_widths, write_widths
from loraprune.structure.widths import legal_widths

STRUCTURE = describe(tiny_model())  # 4 KV heads, 24 channels
COUNTS = legal_widths(STRUCTURE).counts


@pytest.mark.parametrize("text", ["heads=2,channels=20", " heads = 2 , channels=20 ", "channels=20,heads=2"])
def test_spaces_and_order_do_not_matter(text: str) -> None:
    assert completed_widths(STRUCTURE, text, COUNTS) == ({"heads": 2, "channels": 20},)


def test_what_is_not_named_keeps_everything() -> None:
    assert completed_widths(STRUCTURE, "heads=1;channels=7", COUNTS) == (
        {"heads": 1, "channels": 24},
        {"heads": 4, "channels": 7},
    )


def test_what_is_written_is_read_again() -> None:
    choices = ({"heads": 3, "channels": 20}, {"heads": 2, "channels": 24})
    assert parse_widths(write_widths(choices)) == choices


@pytest.mark.parametrize(
    "text", ["", "heads", "heads=", "heads=3 channels=4", "heads=-1", "heads=2.5", "heads=1;", "3"]
)
def test_a_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write heads=3,channels=1120"):
        parse_widths(text)


def test_a_kind_is_named_once() -> None:
    with pytest.raises(ValueError, match="write heads=3,channels=1120"):
        parse_widths("heads=3,heads=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experts=2", "widths names 'experts', but the kinds to prune are heads, channels"),
        ("heads=5", "widths has 5 heads. Choose from 1 to 4"),
        ("channels=0", "widths has 0 channels. Choose from 1 to 24"),
        ("heads=4,channels=24", "keeps everything: 4 heads and 24 channels"),
    ],
)
def test_widths_that_the_model_cannot_have_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        completed_widths(STRUCTURE, text, COUNTS)


def test_a_head_count_that_the_config_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="widths has 3 heads, but the possible numbers are 1, 2, 4"):
        completed_widths(STRUCTURE, "heads=3", COUNTS)
