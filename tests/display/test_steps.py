from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from loraprune.display import steps as progress
from loraprune.display.steps import PLAIN_LINES, StepsProgress


@pytest.fixture(autouse=True)
def _a_step_takes_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=100, color_system=None), file


def lines_of(totals: dict[str, int], **options: bool) -> list[str]:
    """What is printed without a terminal when every piece of work is done, step by step."""
    shown, file = console(terminal=False)
    with StepsProgress(shown, **options) as progress:
        for what, total in totals.items():
            for done in range(1, total + 1):
                progress(what, done, total)
    return file.getvalue().splitlines()


def test_steps_are_plain_lines_with_the_time_left_from_the_second_on() -> None:
    assert lines_of({"wanda": 4}) == [
        "wanda 1/4",
        "wanda 2/4  0:20 left",
        "wanda 3/4  0:10 left",
        "wanda 4/4  0:00 left",
    ]


def test_every_piece_of_work_counts_its_own_time() -> None:
    assert lines_of({"scoring": 2, "cutting": 3}) == [
        "scoring 1/2",
        "scoring 2/2  0:00 left",
        "cutting 1/3",
        "cutting 2/3  0:10 left",
        "cutting 3/3  0:00 left",
    ]


def test_work_of_the_same_name_that_begins_anew_is_new_work() -> None:
    shown, file = console(terminal=False)
    with StepsProgress(shown) as progress:
        for _ in range(2):
            for done in (1, 2):
                progress("cutting", done, 3)
    assert file.getvalue().splitlines() == ["cutting 1/3", "cutting 2/3  0:10 left"] * 2


@pytest.mark.parametrize("total", [1, 7, PLAIN_LINES, 3 * PLAIN_LINES + 1, 1000])
def test_lines_are_few_and_the_last_step_has_one(total: int) -> None:
    printed = lines_of({"work": total})
    assert len(printed) <= 2 * PLAIN_LINES
    assert printed[-1].startswith(f"work {total}/{total}")


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal: bool) -> None:
    shown, file = console(terminal=terminal)
    with StepsProgress(shown, quiet=True) as progress:
        progress("work", 1, 2)
        progress("work", 2, 2)
    assert file.getvalue() == ""


def cursor_is_hidden(file: io.StringIO) -> bool:
    """Whether a live line is there."""
    return file.getvalue().rfind("\x1b[?25l") > file.getvalue().rfind("\x1b[?25h")


def test_a_terminal_has_one_live_line_that_goes_when_the_work_is_done() -> None:
    shown, file = console(terminal=True)
    with StepsProgress(shown) as progress:
        progress("scoring", 1, 3)
        progress("scoring", 2, 3)
        assert cursor_is_hidden(file)
        progress("scoring", 3, 3)
        assert not cursor_is_hidden(file)
    text = file.getvalue()
    assert "scoring 3/3" in text
    assert "100% 0:00 left" in text
    assert text.endswith("\x1b[2K")  # the line is wiped


def test_an_error_takes_the_live_line_away() -> None:
    shown, file = console(terminal=True)

    def work() -> None:
        with StepsProgress(shown) as progress:
            progress("scoring", 1, 3)
            assert cursor_is_hidden(file)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not cursor_is_hidden(file)


def test_rates_are_shown_where_they_are_asked_for() -> None:
    assert lines_of({"tokens": 3}, rates=True) == [
        "tokens 1/3",
        "tokens 2/3  0.1/s  0:10 left",
        "tokens 3/3  0.1/s  0:00 left",
    ]


def test_steps_of_any_size_give_a_line_for_each_tenth() -> None:
    shown, file = console(terminal=False)
    with StepsProgress(shown) as progress:
        for done in (0, 333, 350, 666, 999, 1000):
            progress("tokens", done, 1000)
    assert [line.split()[1] for line in file.getvalue().splitlines()] == [
        "0/1000",
        "333/1000",
        "666/1000",
        "999/1000",
        "1000/1000",
    ]
