"""Callbacks that long work reports its progress to."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the number of finished steps and the number of all steps."""

ProgressOf = Callable[[str, int, int], None]
"""The same where there are several pieces of work: the name of the piece, finished steps, all steps."""
