"""Documentation: examples that are marked as runnable run, links lead somewhere, public names have docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.checkpoints import tiny_checkpoint, write_texts

import loraprune
from loraprune import architectures, criteria, repairs
from loraprune.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("examples/*.md"))]
BLOCK = re.compile(r"^<!-- (runnable|runnable, full) -->\n+```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^<!-- file: ([\w.]+) -->\n+```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(text: str) -> list[tuple[str, str]]:
    """Examples of a page: how they are marked, and their code. Those that take long are for the full run."""
    return BLOCK.findall(text)


def files_of(text: str) -> dict[str, str]:
    """Files that a page shows; its examples find them in the folder that they run in."""
    return dict(FILE.findall(text))


def examples() -> Iterator[object]:
    for page in PAGES:
        if page.is_file():
            text = page.read_text(encoding="utf-8")
            for number, (mark, block) in enumerate(blocks_of(text), start=1):
                marks = [pytest.mark.full] if mark.endswith("full") else []
                name = f"{page.relative_to(ROOT)}, example {number}"
                yield pytest.param(block, files_of(text), id=name, marks=marks)


EXAMPLES = list(examples())

CODE = re.compile(r"^ *```.*?^ *```$|``.+?``|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def links_of(text: str) -> list[tuple[str, str]]:
    """Links of a page to files and headings: path and anchor. What stands in code is none."""
    return LINK.findall(CODE.sub("", text))


def anchors_of(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them: the second of two equal ones ends in ``-1``."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    seen: Counter[str] = Counter()
    found = set()
    for heading in headings:
        anchor = re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", heading).strip().lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken_links(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    broken = []
    for path, anchor in links_of(page.read_text(encoding="utf-8")):
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))):
            broken.append(f"{path}#{anchor}" if anchor else path)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One: `two`\n## Same\n```\n# comment\n```\n## Same\n")
    page.write_text(
        "# Here\n[a](other.md#one-two) [b](other.md#same-1) [c](#here) [d](https://example.org/no.md) `[e](no.md)`\n"
        "```\n[f](no.md)\n```\n[g](none.md) [h](other.md#comment) [i](#there) ![j](other.md#same-2)\n"
    )
    assert broken_links(page) == ["none.md", "other.md#comment", "#there", "other.md#same-2"]


def undocumented(module: Any) -> list[str]:
    """Public names of a module, and public members of its classes, that have no docstring of their own."""
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        documented = inspect.getdoc(value) if inspect.isroutine(value) else value.__doc__
        if not documented or documented.startswith(f"{name}("):  # what a dataclass without one gets
            missing.append(name)
        for member, found in vars(value).items() if inspect.isclass(value) else ():
            told = isinstance(found, (property, classmethod, staticmethod)) or inspect.isfunction(found)
            if told and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
                missing.append(f"{name}.{member}")
    return missing


@pytest.mark.parametrize("module", [loraprune, criteria, repairs], ids=lambda module: str(module.__name__))
def test_every_public_name_has_a_docstring(module: Any) -> None:
    assert undocumented(module) == []


def test_a_missing_docstring_is_found() -> None:
    @dataclass
    class Bare:
        x: int = 0

    class Told:
        """Told."""

        def method(self) -> None: ...

    names = SimpleNamespace(Bare=Bare, Told=Told, function=lambda: None, __all__=["Bare", "Told", "function"])
    assert undocumented(names) == ["Bare", "Told.method", "function"]


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


def test_files_that_the_map_of_the_code_names_exist() -> None:
    named = re.findall(r"`([\w/]+(?:/|\.py))`", (ROOT / "docs/code.md").read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "src/loraprune")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
    assert len(named) > 40


def messages_of_the_package() -> list[str]:
    """Every text in the source, with `…` where a value is put in."""
    found = []
    for path in ROOT.glob("src/loraprune/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[ds]", "…", node.value))
    return found


def test_messages_that_troubleshooting_quotes_are_those_of_the_package() -> None:
    page = (ROOT / "docs/guides/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^> (?!of )`(.+)`$", page, re.MULTILINE)
    messages = "\n".join(messages_of_the_package())
    parts = [part.strip() for quote in quoted for part in quote.split("…")]
    assert [part for part in parts if part not in messages] == []
    assert len(quoted) > 15


@pytest.mark.full
def test_the_guide_to_a_7b_quotes_what_plan_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/guides/ship-7b-on-24gb.md").read_text(encoding="utf-8")
    command, quoted = re.findall(r"^```\nloraprune (plan .+)\n```\n+```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    monkeypatch.setenv("COLUMNS", "120")
    assert main(command.split()) == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    rows = [" ".join(line.split()) for line in quoted.splitlines() if line.strip(" ─")]
    assert [row for row in rows if row not in printed] == []
    assert len(rows) > 15


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
            "text\n<!-- runnable, full -->\n\n```python\nc = 3\n```\n",
        ]
    )
    assert blocks_of(text) == [("runnable", "a = 1\n\nb = 2\n"), ("runnable, full", "c = 3\n")]


def test_files_that_a_page_shows_are_found_by_their_names() -> None:
    text = "\n".join(
        [
            "<!-- file: a.py -->\n```python\na = 1\n```",
            "<!-- file: b.yaml -->\n\n```yaml\nb: 2\n```",
            "```yaml\nc: 3\n```\n",
        ]
    )
    assert files_of(text) == {"a.py": "a = 1\n", "b.yaml": "b: 2\n"}
