"""A page may run its own script and nothing else, and its colors can be told apart in light and in dark."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from importlib.resources import files

import pytest

from loraprune.report import drawing
from loraprune.report.figures import group_map

STYLE = files("loraprune.report").joinpath("page.css.j2").read_text(encoding="utf-8")
LIGHT, DARK = STYLE.split("@media screen and (prefers-color-scheme: dark)")


def variables(scheme: str) -> dict[str, str]:
    light = dict(re.findall(r"--([\w-]+): (#\w+);", LIGHT))
    return light if scheme == "light" else {**light, **dict(re.findall(r"--([\w-]+): (#\w+);", DARK.split("}")[0]))}


def contrast(first: str, second: str) -> float:
    """Contrast as WCAG 2 defines it: relative luminances, and five hundredths of stray light."""
    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    colors = variables(scheme)
    for text, ground in itertools.product(("text", "soft"), ("page", "card", "note")):
        assert contrast(colors[text], colors[ground]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_can_be_seen(scheme: str) -> None:
    colors = variables(scheme)
    for color in ("accent", "second", "third", "fourth", "fifth", "cut", "note-rule"):
        assert contrast(colors[color], colors["card"]) >= 3
    assert contrast(colors["accent"], colors["removed"]) >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pixels_of_a_map_have_the_color_of_what_stayed(scheme: str) -> None:
    assert variables(scheme)["accent"] == group_map.KEPT


def test_every_color_of_pictures_is_one_of_the_page() -> None:
    known = set(re.findall(r"--([\w-]+):", LIGHT))
    assert {name.removeprefix("--") for name in drawing.VARIABLES.values()} <= known


def test_dark_is_for_screens_and_print_is_light() -> None:
    assert STYLE.count("prefers-color-scheme") == 1
    assert "color-scheme: light;" in STYLE.partition("@media print")[2]


def test_the_policy_allows_the_script_of_the_page_and_nothing_else(sample_page: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", sample_page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', sample_page)
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'")
