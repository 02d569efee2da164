from __future__ import annotations

from rich.console import Console

from loraprune.measure.evaluation.results import Entry
from loraprune.report.evaluation import printable, show_completions


def entry(*completions: tuple[str, str]) -> Entry:
    values = {"completions": [{"prompt": prompt, "completion": text} for prompt, text in completions]}
    return Entry(model="m", fingerprint="f", kind="completions", name="prompts", values=values)


COLUMNS = [
    ("dense", [entry(("Once", " upon a time"), ("Then", " it rained"))]),
    ("pruned", [entry(("Once", " there was [bold]a\x1b[31m cat"))]),
]


def printed(width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        show_completions(console, COLUMNS)
    return capture.get()


def test_completions_stand_side_by_side_where_there_is_room() -> None:
    (line,) = [line for line in printed(100).splitlines() if "upon a time" in line]
    assert "there was" in line


def test_completions_stand_below_each_other_in_a_narrow_terminal() -> None:
    lines = printed(60).splitlines()
    dense, pruned = (next(n for n, line in enumerate(lines) if text in line) for text in ("upon a", "there was"))
    assert dense < pruned
    assert lines[dense - 1].strip() == "dense"


def test_a_prompt_that_one_model_completed_is_shown_too() -> None:
    assert "it rained" in printed(100)


def test_what_a_model_writes_does_not_steer_the_terminal() -> None:
    text = printed(100)
    assert "\x1b" not in text
    assert "[bold]a" in text
    assert printable("a\x1b[31m\r\tb\n") == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}\tb\n"
