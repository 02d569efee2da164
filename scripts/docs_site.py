"""What the website of the documentation has beside the pages in docs/: mkdocs calls the functions named ``on_...``.

Reference pages are made from the code, and the texts of the repository's root become pages. Links that lead out of
docs/ are turned to where their target is on the site, or to the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import loraprune
from loraprune import criteria, repairs
from loraprune.cli.declared import options_of_all
from loraprune.cli.main import COMMANDS, usage
from loraprune.cli.parsing import parser_of
from loraprune.options.field import is_option, rule_of
from loraprune.options.flat import Flat

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/loraprune/loraprune"

CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"\b(src|srcset)=\"(?!\w+:)([^\"\s]+\.svg)\"")
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]+)?\)")

ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Texts of the repository's root that are pages of the site, and their names there."""

PYTHON_PAGES = {
    "runs": ("Runs", ("prune", "oneshot", "recover", "compare_criteria", "PruneResult", "OneshotResult", "RunOptions",
                      "LoraOptions", "CriteriaComparison")),
    "configuration": ("Configuration", ("PruningConfig", "OneshotConfig", "SparseConfig", "ComparisonConfig", "Target",
                                        "Schedule")),
    "training": ("Your own training", ("PruningCallback", "PstCallback", "Pruner", "keep_zeros_")),
    "plans": ("Structures, plans and cuts", ("describe", "Structure", "Plan", "plan_for", "cut_")),
    "checkpoints": ("Checkpoints", ("load", "save", "save_pruned", "load_semi_structured", "verify")),
    "measuring": ("Measuring", ("evaluate", "EvaluationConfig", "bench", "BenchConfig", "BenchResult", "read_bench",
                                "estimate", "EstimateConfig", "Estimate", "compare_runs", "RunsComparison")),
    "errors": ("Errors", tuple(name for name in loraprune.__all__ if name.endswith("Error"))),
}  # fmt: skip
"""Public names of ``loraprune`` by the page that specifies them: its name, its title, its names."""

MODULE_PAGES = {"criteria": ("Criteria", criteria), "repairs": ("Repairs", repairs)}
"""Public modules that have a page of their own."""

TRAINING_COMMANDS = ("prune", "recover", "compare-criteria")
"""Commands that take the fields of trl's SFTConfig as options."""

NEEDED = {"OneshotConfig": {"ratio": 0.5}}
"""Options without a default, and any value of them."""

ALIASES = {"CompressoOptions"}
"""Old names, which stand beside the new ones."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation."""
    config.nav = filled(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for name, target in ROOT_PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / name).read_text(encoding="utf-8")))
    for target, text in reference_pages():
        files.append(File.generated(config, target, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make a page that GitHub shows well one that mkdocs shows well."""
    return relinked(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the roles of docstrings into links, where their targets are public, and ``text::`` into ``text:``."""
    html = re.sub(
        r":\w+:<code>~?((?:\w+\.)*)(\w+)</code>",
        r'<autoref optional identifier="\1\2"><code>\2</code></autoref>',
        html,
    )
    return html.replace("::</p>", ":</p>")


def relinked(markdown: str, site_path: str) -> str:
    """A page with its links as the site needs them, and a blank line before tables and lists, as GitHub needs none.

    Args:
        markdown: its text, with links that hold in the repository.
        site_path: where it is on the site.
    """
    origin = next((name for name, page in ROOT_PAGES.items() if page == site_path), f"docs/{site_path}")

    def turned_picture(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[2]))
        path = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(site_path) or ".")
        return f'{found[1]}="{path}"'

    def turned(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if path.startswith("docs/") and (ROOT / path).is_file():
            path = path.removeprefix("docs/")
        elif path in ROOT_PAGES:
            path = ROOT_PAGES[path]
        elif (ROOT / path).exists():
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"]({REPOSITORY}/{kind}/main/{path}{anchor})"
        else:
            return found[0]  # mkdocs says what is broken
        return f"]({posixpath.relpath(path, posixpath.dirname(site_path) or '.')}{anchor})"

    parts = CODE.split(markdown)
    for index in range(0, len(parts), 2):
        text = PICTURE.sub(turned_picture, LINK.sub(turned, parts[index]))
        parts[index] = re.sub(r"^(?![|#]|[-*] |\d+\. | |$)(.+\n)(?=\||[-*] |\d+\. )", r"\1\n", text, flags=re.MULTILINE)
    return "".join(parts)


def filled(nav: Any) -> Any:
    """A navigation in which each page that heads a part of the reference is followed by the pages of that part."""
    parts: dict[str, list[Any]] = {
        "reference/command-line/index.md": [{name: f"reference/command-line/{name}.md"} for name in COMMANDS],
        "reference/python/index.md": [
            {title: f"reference/python/{page}.md"} for page, (title, _) in (PYTHON_PAGES | MODULE_PAGES).items()
        ],
    }
    if isinstance(nav, str):
        return [nav, *parts[nav]] if nav in parts else nav
    if isinstance(nav, list):
        return [filled(entry) for entry in nav]
    return {title: filled(entry) for title, entry in nav.items()}


def reference_pages() -> Iterator[tuple[str, str]]:
    """The pages that are made from the code: where each is, and its text."""
    yield (
        "reference/command-line/index.md",
        f"# Command line\n\n```\n{usage()}```\n\n"
        + "".join(f"- [`loraprune {command}`]({command}.md): {text}\n" for command, text in COMMANDS.items()),
    )
    for command in COMMANDS:
        yield f"reference/command-line/{command}.md", command_page(command)
    groups = {page: (title, "loraprune", names) for page, (title, names) in PYTHON_PAGES.items()}
    for page, (title, home) in MODULE_PAGES.items():
        groups[page] = title, home.__name__, tuple(name for name in home.__all__ if name not in ALIASES)
    yield (
        "reference/python/index.md",
        "# Python\n\nEvery public name, by subject.\n"
        + "".join(
            f"\n**[{title}]({page}.md)**: {', '.join(f'[`{name}`][{module}.{name}]' for name in names)}\n"
            for page, (title, module, names) in groups.items()
        ),
    )
    for page, (title, module, names) in groups.items():
        yield f"reference/python/{page}.md", python_page(title, module, names)


def command_page(command: str) -> str:
    """Every option of a command, in the groups of its help."""
    parser = parser_of(command)
    lines = [f"# `loraprune {command}`", "", "```", parser.format_usage().strip().removeprefix("usage: "), "```", ""]
    lines += [parser.description or COMMANDS[command], ""]
    for group in parser._action_groups:
        rows = [row_of(action) for action in group._group_actions if action.help != argparse.SUPPRESS]
        if rows:
            lines += [heading(group.title or ""), "", "| option | meaning |", "|---|---|", *rows, ""]
    for part in (parser.epilog or "").strip().split("\n\n"):
        title, colon, rest = part.partition(":\n")
        lines += [heading(title), "", "```", textwrap.dedent(rest).rstrip(), "```", ""] if colon else [part, ""]
    if command in TRAINING_COMMANDS:
        lines += [further_options({flag for action in parser._actions for flag in action.option_strings})]
    return "\n".join(lines)


def heading(title: str) -> str:
    """A title of argparse as a heading."""
    return f"## {title[:1].upper()}{title[1:]}"


def row_of(action: argparse.Action) -> str:
    """One option as a row of a table."""
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    words = [", ".join(action.option_strings), "" if action.nargs == 0 else str(value)]
    return f"| `{' '.join(filter(None, words))}` | {(action.help or '').replace('%%', '%')} |"


def further_options(own: set[str]) -> str:
    """The fields of trl's SFTConfig that a command takes beside its own options."""
    from loraprune.cli.training_options import training_fields
    from loraprune.tasks.training_rules import REMEDIES

    flags = {name: f"--{name.replace('_', '-')}" for name in training_fields() if name not in REMEDIES}
    listed = ", ".join(f"`{flag}`" for flag in sorted(flags.values()) if flag not in own)
    return f"## Training options\n\nWith the meaning and the type that trl and transformers give them: {listed}.\n"


def python_page(title: str, module: str, names: tuple[str, ...]) -> str:
    """Public names with their docstrings, and the options of each configuration."""
    lines = [f"# {title}", ""]
    for name in names:
        lines += [f"::: {module}.{name}", "", *options_table(getattr(__import__(module, fromlist=[name]), name))]
    return "\n".join(lines)


def options_table(kind: Any) -> list[str]:
    """The options of a configuration with their defaults; nothing of anything else."""
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        return []
    if issubclass(kind, Flat):
        options: Mapping[str, dataclasses.Field[Any]] = options_of_all(kind)
    else:
        options = {field.name: field for field in dataclasses.fields(kind) if is_option(field)}
    if not options:
        return []
    needed = NEEDED.get(kind.__name__, {})
    usual = kind(**needed)
    rows = [
        f"| `{name}` | {'–' if name in needed else default_shown(usual, field, name)} | {rule_of(field).help} |"
        for name, field in options.items()
    ]
    return [
        "Keywords of the configuration, options of the command line, and names in recipes:",
        "",
        "| keyword | default | meaning |",
        "|---|---|---|",
        *rows,
        "",
    ]


def default_shown(usual: Any, field: dataclasses.Field[Any], name: str) -> str:
    """The default of an option as its help shows it, or as it is typed."""
    value = getattr(usual, name)
    return rule_of(field).shown or f"`{getattr(value, 'name', value)!r}`"
