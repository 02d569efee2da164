"""The report in a real browser: no errors, nothing beside the window, labels apart, and the pointer is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.report.browser import needs_browser, visit

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_browser


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
def test_the_whole_report_fits_and_answers(sample_page: str, tmp_path: Path, width: int, dark: bool) -> None:
    found = visit(sample_page, tmp_path, width, dark)
    assert found.console == []
    facts = found.facts
    assert facts["overflow"] <= 0
    assert facts["pictures"] == 10
    assert facts["outside"] == []
    assert facts["overlapping"] == []
    assert facts["ground"] == ("rgb(15, 18, 22)" if dark else "rgb(246, 247, 249)")
    assert all(inside for _, inside in facts["told"])
    texts = [text for text, _ in facts["told"]]
    assert "boolq: 62.0 % dense, 58.0 % pruned (\N{MINUS SIGN}4.0 points)" in texts
    assert any(text.startswith("Step 1: loss ") for text in texts)
    assert any(text.startswith("Layer 0 (264 of 704 kept), channels 0–10: ") for text in texts)
    assert facts["hidden"] is True


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_odd_reports_fit_too(any_page: str, tmp_path: Path, width: int) -> None:
    found = visit(any_page, tmp_path, width)
    assert found.console == []
    assert found.facts["overflow"] <= 0
    assert found.facts["outside"] == []
    assert found.facts["overlapping"] == []
