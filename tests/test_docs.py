"""The examples of the documentation that are marked as runnable run as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkpoints import tiny_checkpoint, write_texts

from loraprune import architectures

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^<!-- runnable -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(text: str) -> list[str]:
    return BLOCK.findall(text)


def examples() -> Iterator[object]:
    for page in PAGES:
        if page.is_file():
            for number, block in enumerate(blocks_of(page.read_text(encoding="utf-8")), start=1):
                yield pytest.param(block, id=f"{page.relative_to(ROOT)}, example {number}")


EXAMPLES = list(examples())


@pytest.mark.skipif(not EXAMPLES, reason="no page has an example marked with <!-- runnable -->")
@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_of_the_documentation_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))  # an example may register a family
    names = {
        "MODEL": str(tiny_checkpoint(tmp_path / "model")),
        "DATA": str(write_texts(tmp_path / "data.jsonl")),
        "__name__": "__main__",
    }
    exec(compile(block, "example", "exec"), names)


def test_only_marked_python_blocks_count_as_examples() -> None:
    text = "\n".join(
        [
            "```python\nno = 1\n```",
            "<!-- runnable -->\n```python\na = 1\n\nb = 2\n```",
            "<!-- runnable -->\n```bash\nls\n```",
            "text\n<!-- runnable -->\n\n```python\nc = 3\n```\n",
        ]
    )
    assert blocks_of(text) == ["a = 1\n\nb = 2\n", "c = 3\n"]
