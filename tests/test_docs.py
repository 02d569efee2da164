"""The examples of the documentation that are marked as runnable run as they stand."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.checkpoints import tiny_checkpoint, write_texts

from loraprune import architectures

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^<!-- runnable -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^<!-- file: ([\w.]+) -->\n+```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(text: str) -> list[str]:
    return BLOCK.findall(text)


def files_of(text: str) -> dict[str, str]:
    """Files that a page shows; its examples find them in the folder that they run in."""
    return dict(FILE.findall(text))


def examples() -> Iterator[object]:
    for page in PAGES:
        if page.is_file():
            text = page.read_text(encoding="utf-8")
            for number, block in enumerate(blocks_of(text), start=1):
                yield pytest.param(block, files_of(text), id=f"{page.relative_to(ROOT)}, example {number}")


EXAMPLES = list(examples())

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors_of(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, anchor in LINK.findall(text):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


@pytest.mark.skipif(not EXAMPLES, reason="no page has an example marked with <!-- runnable -->")
@pytest.mark.parametrize(("block", "files"), EXAMPLES)
def test_an_example_of_the_documentation_runs(
    block: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))  # an example may register a family
    names = {
        "MODEL": str(tiny_checkpoint(tmp_path / "model")),
        "DATA": str(write_texts(tmp_path / "data.jsonl")),
        "__name__": "__main__",
    }
    try:
        exec(compile(block, "example", "exec"), names)
    finally:
        for name in files:
            sys.modules.pop(name.removesuffix(".py"), None)


def test_every_family_that_can_be_pruned_is_listed() -> None:
    (table,) = re.findall(r"^\| model types .*?\n\n", (ROOT / "docs/architectures.md").read_text(), re.M | re.S)
    listed = {name for row in table.strip().splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert listed == set(architectures.supported())


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


def test_files_that_a_page_shows_are_found_by_their_names() -> None:
    text = "\n".join(
        [
            "<!-- file: a.py -->\n```python\na = 1\n```",
            "<!-- file: b.yaml -->\n\n```yaml\nb: 2\n```",
            "```yaml\nc: 3\n```\n",
        ]
    )
    assert files_of(text) == {"a.py": "a = 1\n", "b.yaml": "b: 2\n"}
