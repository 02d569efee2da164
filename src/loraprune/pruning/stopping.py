"""Handling of Ctrl-C and SIGTERM, which schedulers and containers send. Imports no heavy package."""

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
    """Raised on Ctrl-C.

    It is a subclass because a plain KeyboardInterrupt that leaves an ``exec`` of a string (dataclasses use it) makes
    CPython end the process by the signal, with exit code -2, even if the exception was caught.
    """


class TerminatedError(KeyboardInterrupt):
    """Raised on SIGTERM; code that handles Ctrl-C handles it too."""


class Stopping(AbstractContextManager["Stopping"]):
    """Calls a function on Ctrl-C and SIGTERM during a ``with`` block; has an effect in the main thread only.

    Processes forked during the block handle both signals in the default way.

    Args:
        handle: function called in the main thread with the number of the signal.
        ignored: also handle signals that were ignored before: shells make background jobs ignore Ctrl-C.

    Attributes:
        number: number of the first signal received, or None.
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
        """Restore the previous handlers."""
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
    """Raise the exception for a signal.

    Raises:
        KeyboardInterrupt: always; a :class:`TerminatedError` for SIGTERM, a :class:`CtrlCError` for Ctrl-C.
    """
    raise TerminatedError if number == signal.SIGTERM else CtrlCError


def exit_code(number: int | None) -> int:
    """Return the exit code of a command stopped by a signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (number or signal.SIGINT)
