"""What stops a run from outside: Ctrl-C, and SIGTERM, which schedulers and containers send. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C stopped."""


class CtrlCError(KeyboardInterrupt):
    """Ctrl-C came.

    Not KeyboardInterrupt itself: once that has passed through an ``exec`` of a text, as dataclasses make their methods,
    CPython ends the process by the signal, with exit code -2, although the exception was caught.
    """


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came; what ends well after Ctrl-C ends well after this, too."""


class Stopping(AbstractContextManager["Stopping"]):
    """Has a function called for Ctrl-C and SIGTERM while the block runs; only the main thread can.

    A signal that was ignored before stays so, unless ``ignored`` says otherwise. In processes forked meanwhile
    SIGTERM ends them, as their parent means it to.

    Args:
        handle: called in the main thread, with the number of the signal.
        ignored: handle signals, too, that were ignored before, as shells have background jobs ignore Ctrl-C.

    Attributes:
        number: of the first signal that came, or None.
    """

    def __init__(self, handle: Callable[[int], None], *, ignored: bool = False) -> None:
        self.number: int | None = None
        self._handle = handle
        self._left_alone = (None,) if ignored else (None, signal.SIG_IGN)
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before not in self._left_alone:
                    self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the signals back."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _came(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self.number = self.number or number
        around = getattr(self._before[number], "__self__", None)
        if isinstance(around, Stopping):
            around.number = self.number
        self._handle(number)


def raise_stop(number: int) -> None:
    """Stop at once.

    Raises:
        KeyboardInterrupt: always, as a :class:`TerminatedError` for SIGTERM and a :class:`CtrlCError` for Ctrl-C.
    """
    raise TerminatedError if number == signal.SIGTERM else CtrlCError


def exit_code(number: int | None) -> int:
    """What a command ends with that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (number or signal.SIGINT)
