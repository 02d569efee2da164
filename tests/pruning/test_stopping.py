from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loraprune.pruning.stopping import SIGNALS, Stopping, TerminatedError, exit_code, raise_stop


@pytest.fixture(autouse=True)
def _as_in_a_shell() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_raises_what_is_handled_like_ctrl_c() -> None:
    with Stopping(raise_stop) as stopping, pytest.raises(TerminatedError) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert exit_code(stopping.number) == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_inside_an_exec_of_a_text_leaves_the_exit_code_to_the_command() -> None:
    """CPython remembers a KeyboardInterrupt that left one, and would end with the signal."""
    code = (
        "import signal, sys\n"
        "from loraprune.pruning.stopping import Stopping, raise_stop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    with Stopping(raise_stop):\n"
        "        exec('import signal; signal.raise_signal(signal.SIGINT); pass')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert done.returncode == 130, done.stderr


def test_an_inner_block_tells_the_outer_one_what_came() -> None:
    seen: list[int] = []
    with Stopping(raise_stop) as outer:
        with Stopping(seen.append):
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        assert outer.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert exit_code(outer.number) == 143, "the first one counts"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with Stopping(raise_stop) as stopping:
        signal.raise_signal(number)
    assert stopping.number is None
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_ends_by_sigterm() -> None:
    with Stopping(lambda number: None):
        child = os.fork()
        if child == 0:  # pragma: no cover
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
