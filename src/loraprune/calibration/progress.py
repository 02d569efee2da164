"""Callbacks that receive the progress of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Receives the number of finished steps and the number of all steps."""

ProgressOf = Callable[[str, int, int], None]
"""Same for several pieces of work: name of the piece, finished steps, all steps."""
