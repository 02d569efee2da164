"""A drawing becomes markup that depends on what is drawn alone."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from loraprune.report.drawing import ACCENT, REMOVED, Zone, drawing, svg_of


def draw(label: str, width: float = 300, note: str = "$x$ & <y>") -> str:
    with drawing(width, 200) as canvas:
        axes = canvas.subplots()
        axes.plot([0, 1, 2], [0, 1, 0], "o-", color=ACCENT)
        axes.fill_between([0, 2], 1, color=REMOVED)
        axes.set_title(note)
        zone = Zone(axes=(axes,), left=0, right=2, bottom=0, top=1, texts=("a|b", "<c>"), head="Step 1")
        axes.set_xlim(0, 2)
        axes.set_ylim(0, 1)
        markup = svg_of(canvas, label, [zone])
        box = axes.bbox
    place = re.search(r'class="zone" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', markup)
    assert place is not None
    expected = (box.x0, 200 - box.y1, box.width, box.height)
    assert [float(part) for part in place.groups()] == pytest.approx(expected, abs=0.06)
    return markup


def test_the_same_picture_is_the_same_text() -> None:
    assert draw("a picture") == draw("a picture")


def test_pictures_with_other_labels_or_sizes_share_no_id() -> None:
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (draw("a"), draw("b"), draw("a", 400))]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert not ids[0] & ids[2]


def test_text_stays_text_and_dollars_are_no_formulas() -> None:
    assert "$x$ &amp; &lt;y&gt;</text>" in draw("a")


def test_a_text_that_the_font_lacks_is_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert "狐" in draw("a", note="狐")
    assert not [item for item in recwarn if "Glyph" in str(item.message)]


def test_what_is_told_under_the_pointer_is_escaped_and_parted() -> None:
    assert 'data-head="Step 1" data-tips="a\N{BROKEN BAR}b|&lt;c&gt;"' in draw("a")


def test_the_style_of_the_report_is_gone_afterwards() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw("a")
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_loaded_when_something_is_drawn_and_not_before() -> None:
    code = "import sys, loraprune.report.page; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
