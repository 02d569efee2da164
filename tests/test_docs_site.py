"""The website of the documentation: every page, every option and every public name is on it, and it builds."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import docs_site

import loraprune
from loraprune import criteria, repairs
from loraprune.cli.main import COMMANDS
from loraprune.cli.parsing import flags_of, parser_of

ROOT = Path(__file__).parents[1]


def pages_of(nav: Any) -> list[str]:
    """The pages of a navigation of mkdocs, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return dict(docs_site.reference_pages())


def test_the_navigation_has_every_page_once(reference: dict[str, str]) -> None:
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    pages = [page for page in pages_of(docs_site.filled(yaml.safe_load(text)["nav"])) if "://" not in page]
    assert sorted(pages) == sorted(written | reference.keys() | set(docs_site.ROOT_PAGES.values()))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_page_with_all_of_its_options(command: str, reference: dict[str, str]) -> None:
    page = reference[f"reference/command-line/{command}.md"]
    shown = re.findall(r"--[a-z][\w-]*", page)
    hidden = {action.dest for action in parser_of(command)._actions if action.help == "==SUPPRESS=="}
    flags = [flag for flag in flags_of(parser_of(command)) if flag.removeprefix("--").replace("-", "_") not in hidden]
    assert {flag for flag in flags if not flag.startswith("--no-")} <= set(shown)
    trains = "SFTConfig" in (parser_of(command).epilog or "")
    assert ("--adam-beta1" in shown) == trains
    assert not trains or "--hub-token" not in shown  # refused


def test_every_public_name_is_specified_on_one_page(reference: dict[str, str]) -> None:
    specified = re.findall(r"^::: (\S+)$", "\n".join(reference.values()), re.MULTILINE)
    names = {f"loraprune.{name}" for name in loraprune.__all__ if name != "__version__"}
    for module in (criteria, repairs):
        names |= {f"{module.__name__}.{name}" for name in module.__all__ if name not in docs_site.ALIASES}
    assert sorted(specified) == sorted(names)


def test_options_of_a_configuration_come_with_their_defaults(reference: dict[str, str]) -> None:
    page = reference["reference/python/configuration.md"]
    assert re.search(r"^\| `cuts` \| `5` \| \S", page, re.MULTILINE)
    assert re.search(r"^\| `criterion` \| `'fisher'` \| \S", page, re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "link", "there"),
    [
        ("index.md", "docs/results.md#cost", "results.md#cost"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("guides/deploy.md", "../runtimes.md", "../runtimes.md"),
        ("guides/deploy.md", "../../README.md#use-it", "../index.md#use-it"),
        ("methods/README.md", "../../recipes", f"{docs_site.REPOSITORY}/tree/main/recipes"),
        ("contributing.md", "docs/results.md", "results.md"),
        ("several-processes.md", "../examples/slurm.sh", f"{docs_site.REPOSITORY}/blob/main/examples/slurm.sh"),
        ("results.md", "nowhere.md", "nowhere.md"),
        ("results.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(page: str, link: str, there: str) -> None:
    assert docs_site.relinked(f"See [it]({link}).", page) == f"See [it]({there})."


def test_pictures_of_pages_are_found_on_the_site() -> None:
    picture = '<picture><source srcset="{0}-dark.svg"><img alt="a" src="{0}.svg"></picture>'
    assert docs_site.relinked(picture.format("docs/results/a"), "index.md") == picture.format("results/a")
    assert docs_site.relinked(picture.format("a"), "results/README.md") == picture.format("a")
    assert docs_site.relinked(picture.format("../results/a"), "guides/b.md") == picture.format("../results/a")


def test_code_stays_as_it_is_and_tables_get_a_blank_line() -> None:
    code = "```python\nx = table[0](CONTRIBUTING.md)\n- 1\n```\n"
    assert docs_site.relinked(code, "index.md") == code
    assert docs_site.relinked("Text\n| a |\n|---|\n", "index.md") == "Text\n\n| a |\n|---|\n"
    assert docs_site.relinked("Text\n- a\n  more\n- b\n", "index.md") == "Text\n\n- a\n  more\n- b\n"


@pytest.mark.full
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True,
    )  # fmt: skip
    for written in ROOT.glob("docs/**/*.md"):
        page = written.relative_to(ROOT / "docs")
        made = tmp_path / (page.parent / "index.html" if page.name == "README.md" else page.with_suffix(".html"))
        heading = re.search(r"^# (.+)$", written.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading, page
        assert f">{html.escape(heading[1], quote=False)}<a " in re.sub(
            r"</?code>", "`", made.read_text(encoding="utf-8")
        )
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"', text)
        assert fetched == [], page
        for picture in re.findall(r'(?:src|srcset)="([^":]+\.svg)"', text):
            assert (page.parent / picture).is_file(), (page, picture)
        assert not re.search(r":(?:class|func|meth|mod|attr|data|exc):", text), page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
