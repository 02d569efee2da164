"""The tables of docs/scaling.md are those that the benchmark prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.scaling import SHAPES, rows
from tests.thinned import thinned

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", thinned(SHAPES))
def test_the_page_shows_what_is_printed(name: str) -> None:
    assert "\n".join(rows(name)) in PAGE
