"""YAML at the top of a card."""

from pathlib import Path

import pytest

from loraprune.data.front_matter import front_matter


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Model\n", {"license": "mit", "tags": ["a"]}),
        ("---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("--- \nlicense: mit\n---", {"license": "mit"}),
        ("---\nlicense: mit --- not\nmodel: a---\n---\n", {"license": "mit --- not", "model": "a---"}),
        ("---\n---\n# Model\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\na: [\n---\n", {}),
        ("# Model\n---\nlicense: mit\n---\n", {}),
        ("", {}),
    ],
)
def test_front_matter_stands_between_two_lines_of_dashes(text: str, values: object, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_bytes(text.encode())
    assert front_matter(card) == values


def test_a_missing_card_has_none(tmp_path: Path) -> None:
    assert front_matter(tmp_path / "README.md") == {}
