"""Errors that end a run early."""

from __future__ import annotations

import re
import sys

_ASKED = re.compile(r"[Tt]ried to allocate (\d[\d.]* ?\w+)")
_CPU = re.compile(r"can't allocate memory(?:: you tried to allocate (\d+) bytes)?")


class InterruptedRunError(Exception):
    """The user stopped training; the message says what was saved and how to resume."""


class BadResultError(ArithmeticError):
    """A finished run has an unusable result; nothing was written."""


class TrainingDivergedError(ArithmeticError):
    """Loss or gradients stayed NaN or Inf; the last good state is saved."""


class DryRunError(Exception):
    """A dry run passed all checks and stops before the work starts."""


def memory_that_ran_out(error: BaseException) -> str | None:
    """Return a sentence about the memory that ran out, with the size asked for; None if it is another error.

    torch has an error type for accelerators alone: if the CPU's memory runs out, it raises ``RuntimeError``.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        asked = _ASKED.search(str(error))
        return f"The GPU's memory ran out{f' ({asked[1]} more were needed)' if asked else ''}."
    of_torch = _CPU.search(str(error)) if isinstance(error, RuntimeError) else None
    if of_torch is None and not isinstance(error, MemoryError):
        return None
    more = f" ({int(of_torch[1]) / 1e9:.3g} GB more were needed)" if of_torch and of_torch[1] else ""
    return f"The machine's memory ran out{more}."
