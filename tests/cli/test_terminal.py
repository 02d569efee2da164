"""What comes from elsewhere reaches no terminal as anything but text."""

from __future__ import annotations

import io
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from tests.cli.conftest import Command
from tests.sample_reports import sample_report

from loraprune.cli.console import show_report
from loraprune.cli.main import COMMANDS
from loraprune.display.console import CleanConsole, print_line
from loraprune.display.terminal import REPLACEMENT, clean, one_line
from loraprune.record.report_data import Completion

NASTY = "a\x1b]0;owned\x07\x1b[31mb\x9b2Jc\rd\N{RIGHT-TO-LEFT OVERRIDE}e\N{FIRST STRONG ISOLATE}f\x00g\x7f[red]:smile:"


def is_safe(text: str) -> bool:
    """Whether a terminal would obey nothing of it."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return not any(
        (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") and char not in "\n\t")
        or unicodedata.bidirectional(char) in bidi
        for char in text
    )


@pytest.mark.parametrize("number", [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), 0xD800])
def test_what_a_terminal_obeys_is_replaced(number: int) -> None:
    char = chr(number)
    assert clean(f"a{char}b") == (f"a{char}b" if char in "\n\t" else f"a{REPLACEMENT}b")
    assert is_safe(one_line(f"a{char}b"))
    assert "\n" not in one_line(f"a{char}b")


@pytest.mark.parametrize("text", ["naïve – 日本語", "👩‍🔬 crème", "f\tg", "x\u0301"])
def test_other_text_stays(text: str) -> None:
    assert clean(text) == one_line(text) == text


def test_a_message_is_one_line() -> None:
    assert one_line("no model 'a\nerror: b'\r\n  at c\n") == "no model 'a error: b' at c"


def shown(content: object, **options: object) -> str:
    file = io.StringIO()
    CleanConsole(file=file, width=200, **options).print(content)
    return file.getvalue()


class TestConsole:
    def test_tables_are_clean_in_headings_and_cells(self) -> None:
        table = Table(title=NASTY)
        table.add_column(NASTY)
        table.add_row(NASTY)
        table.add_row(Text(NASTY))
        assert is_safe(shown(table))

    def test_names_are_no_markup(self) -> None:
        assert "[/b] [link=x] :smile:" in shown("[/b] [link=x] :smile:")

    def test_newlines_and_styles_stay(self) -> None:
        assert shown("a\n\tb") == "a\n        b\n"
        styled = shown(Text(f"a{NASTY}", "red"), force_terminal=True, color_system="standard")
        assert styled.startswith("\x1b[31ma")
        assert styled.count("\x1b") == 2

    def test_live_lines_are_clean(self) -> None:
        file = io.StringIO()
        console = CleanConsole(file=file, width=200, force_terminal=True, color_system=None)
        with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
            progress.add_task(NASTY)
        assert "]0;owned" in file.getvalue()
        assert "\x1b]0;" not in file.getvalue()
        assert "\x9b" not in file.getvalue()

    def test_lines_of_messages_are_clean(self) -> None:
        file = io.StringIO()
        print_line(CleanConsole(file=file, width=200), f"error: {NASTY}\nloraprune: all is well")
        assert is_safe(file.getvalue())
        assert file.getvalue().count("\n") == 1

    def test_completions_keep_their_lines(self) -> None:
        data = replace(
            sample_report(), completions=(Completion(prompt=f"one\ntwo{NASTY}", dense=NASTY, pruned="\tx\n\ny"),)
        )
        file = io.StringIO()
        show_report(CleanConsole(file=file, width=200), data)
        assert is_safe(file.getvalue())
        assert "  one\n  two" in file.getvalue()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_command_repeats_what_it_was_given_raw(command: str, run: Command, tmp_path: Path) -> None:
    for arguments in ([NASTY], [f"--{NASTY}"], [f"--ratio={NASTY}"], [tmp_path / "x\x1b[31m\ny"]):
        finished = run(*([command] if command else []), *arguments)
        assert finished.code == 2
        assert finished.err
        assert is_safe(finished.err), finished.err
        assert is_safe(finished.out)


def test_keys_of_recipes_and_columns_are_clean(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    recipe, odd = tmp_path / "recipe.yaml", tmp_path / "odd.jsonl"
    recipe.write_text(json.dumps({NASTY: 1}), encoding="utf-8")
    odd.write_text(json.dumps({NASTY: "text"}) + "\n", encoding="utf-8")
    for arguments in (["--data", data, "--config", recipe], ["--data", odd]):
        finished = run("prune", checkpoint, *arguments, "-o", tmp_path / "out")
        assert finished.code == 2
        assert finished.err.startswith(("error: ", "Loading"))
        assert is_safe(finished.err), finished.err
