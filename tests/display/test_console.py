"""Lines of a terminal: broken between words, with paths and commands whole."""

import io

import pytest

from loraprune.display.console import CleanConsole, broken, print_line

WORDS = "error: The dataset of wikitext2 cannot be loaded from the Hub. Pass a local copy."
PATH = "/data/" + "deep/" * 20 + "model"


def printed(text: str, *, terminal: bool = True, **options: object) -> str:
    file = io.StringIO()
    print_line(CleanConsole(file=file, width=40, force_terminal=terminal, color_system=None), text, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_a_terminal_breaks_lines_between_words() -> None:
    lines = printed(WORDS).splitlines()
    assert " ".join(lines) == WORDS
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40


def test_without_a_terminal_a_message_is_one_line() -> None:
    assert printed(WORDS, terminal=False) == WORDS + "\n"


def test_a_path_stays_whole() -> None:
    assert PATH in printed(f"{PATH} is not a checkpoint: it has no config.json.").splitlines()[0]
    assert printed("Report: my folder/" + "x y " * 20 + "z", whole=True).count("\n") == 1


@pytest.mark.parametrize(
    "command", ["loraprune push out/half me/my-model --private", "loraprune bench DENSE PRUNED a b c d e f."]
)
def test_a_command_at_the_end_stays_whole(command: str) -> None:
    assert broken(f"The result is not on the Hub. Push it again: {command}", 50).splitlines()[-1].endswith(command)


def test_a_sentence_after_a_command_is_broken() -> None:
    text = "Run: loraprune verify OUT. It checks that the result loads, and that its weights are finite."
    assert max(map(len, broken(text, 40).splitlines())) <= 40


def test_further_lines_are_indented() -> None:
    first, *further = printed("a " * 60, indent=14).splitlines()
    assert first.startswith("a")
    assert further
    assert all(line.startswith(" " * 14) for line in further)
