from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loraprune.record.claims import OutputInUseError, claimed

HOLD = """
import sys, time
from pathlib import Path
from loraprune.record.claims import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


@contextmanager
def other_run(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed an output."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_run_is_named_by_host_and_process(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    (tmp_path / "link").symlink_to("new")
    with other_run(output) as process:
        for name in (output, tmp_path / "link" / "out"):
            for _ in range(2):  # being refused changes nothing
                with pytest.raises(OutputInUseError) as found, claimed(name):
                    pass
                owner = f"host {socket.gethostname()}, process {process.pid}"
                assert str(found.value) == (
                    f"{output} is being written to by another run ({owner}). Wait for it, or name another output."
                )
        with claimed(tmp_path / "other"):
            pass


def test_a_run_that_is_alive_keeps_what_it_has_beside_the_output(tmp_path: Path) -> None:
    partial = tmp_path / ".out.0123456789abcdef.partial"
    with other_run(tmp_path / "out"):
        partial.mkdir()
        with pytest.raises(OutputInUseError), claimed(tmp_path / "out"):
            pass
        assert partial.is_dir()
    with claimed(tmp_path / "out"):
        assert not partial.exists()


def test_a_lock_of_a_dead_process_holds_nobody_up_and_goes(tmp_path: Path) -> None:
    with other_run(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".out.lock").is_file()
        with claimed(tmp_path / "out"):
            assert str(os.getpid()) in (tmp_path / ".out.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_run_just_removed_is_taken_anew(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with claimed(tmp_path / "out"):
            order.append("second")
            assert (tmp_path / ".out.lock").is_file()

    with claimed(tmp_path / "out"):
        thread = threading.Thread(target=second)
        order.append("first")
    thread.start()
    thread.join()
    assert order == ["first", "second"]


def test_two_threads_are_two_runs_and_a_run_may_claim_twice(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def second() -> None:
        try:
            with claimed(tmp_path / "out"):
                pass
        except OutputInUseError as error:
            found.append(error)

    with claimed(tmp_path / "out"), claimed(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_a_claim_not_even_folders_made_for_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with claimed(None):
        pass


@pytest.mark.parametrize("name", [".out.0123.partial", ".out.partial", ".other.0123456789abcdef.old", ".out.x.old"])
def test_other_hidden_folders_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with claimed(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_newest_of_the_replaced_folders_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, mark in enumerate(("01234567", "89abcdef0123abcd")):
        folder = tmp_path / f".out.{mark}.old"
        folder.mkdir()
        (folder / str(number)).touch()
        os.utime(folder, (number, number))
    with claimed(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "Restored" in caplog.text
