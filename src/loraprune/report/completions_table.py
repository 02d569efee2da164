"""Completions of the same prompts by several models: side by side where there is room, else one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.measure.evaluation.results import Entry

_LEAST_WIDTH = 32
"""Columns of the terminal that a completion needs to be readable beside another one."""


def show_completions(console: Console, columns: Sequence[tuple[str, Sequence[Entry]]]) -> None:
    """Print every prompt and what each model made of it.

    Args:
        console: to print on.
        columns: of each model its name as it is printed, and its entries; those of kind ``completions`` are shown.
    """
    texts = [(name, _by_prompt(entries)) for name, entries in columns]
    for prompt in dict.fromkeys(prompt for _, own in texts for prompt in own):
        console.print(Text(printable(prompt), style="bold"))
        shown = [(name, printable(own[prompt]).strip("\n")) for name, own in texts if prompt in own]
        if len(shown) > 1 and console.width // len(shown) >= _LEAST_WIDTH:
            console.print(_side_by_side(shown))
            continue
        for name, completion in shown:
            console.print(Text(f"  {name}", style="dim"))
            console.print(Padding(Text(completion), (0, 0, 0, 4)))
        console.print()


def _by_prompt(entries: Sequence[Entry]) -> Mapping[str, str]:
    return {
        item["prompt"]: item["completion"]
        for entry in entries
        if entry.kind == "completions"
        for item in entry.values.get("completions", ())
    }


def _side_by_side(shown: Sequence[tuple[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", expand=True)
    for name, _ in shown:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(completion) for _, completion in shown))
    return table


def printable(text: str) -> str:
    """The text without characters that would steer the terminal; a model may write any."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
