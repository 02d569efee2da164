"""Work shared by the processes of a run, and errors that end all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from loraprune.processes.ranks import OtherProcessError, num_processes

Made = TypeVar("Made")

_STRETCHES = 16
"""Number of times that processes meet during shared work; an error in one reaches the others there."""

_TOLD = "_loraprune_told"
_KINDS = (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError)
"""Types that an error of another process can get here; the first that matches."""


def together(make: Callable[[], Made]) -> Made:
    """Call a function in every process and return this process's result; if one fails, all fail.

    The call is collective. An error is raised in its own process and, with the same message, in the others. ``make``
    may share work, but must not call :func:`~loraprune.processes.ranks.from_main`: a failed process does not take
    part in it.

    Raises:
        Exception: the error of ``make``, here or in another process.
    """
    if num_processes() == 1:
        return make()
    box: list[Made] = []

    def keep() -> None:
        box.append(make())

    _gathered(keep)
    return box[0]


def made_of_each(
    count: int,
    make: Callable[[int], Made],
    *,
    shared: bool,
    sizes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Made]:
    """Call a function for each of ``count`` items and return the results in order.

    Args:
        count: number of items.
        make: function of an item's index; returns plain values, which processes can exchange.
        shared: share the items out among the processes; the call is then collective.
        sizes: sizes of the items, for ``progress``; None counts each as 1.
        progress: called with the finished and the total size.

    Raises:
        Exception: the error of ``make``, here or in another process.
    """
    processes, rank = num_processes() if shared else 1, 0
    if processes > 1:
        import torch.distributed as dist

        rank = dist.get_rank()
    weights = [1] * count if sizes is None else sizes
    done, total = 0, sum(weights)
    made: list[Made] = []

    def one(number: int) -> Made:
        nonlocal done
        found = make(number)
        done += weights[number] * processes  # an estimate: the others are about as far
        if progress is not None and (processes == 1 or done < total):
            progress(done, total)
        return found

    if processes == 1:
        return [one(number) for number in range(count)]
    step = processes * max(1, math.ceil(count / (processes * _STRETCHES)))
    for first in range(0, count, step):
        stretch = range(first, min(first + step, count))
        parts = _gathered(partial(_each, one, stretch[rank::processes]))
        made += [parts[place % processes][place // processes] for place in range(len(stretch))]
    if count and progress is not None:
        progress(total, total)
    return made


def _each(make: Callable[[int], Made], numbers: Iterable[int]) -> list[Made]:
    return [make(number) for number in numbers]


def _gathered(make: Callable[[], Made]) -> list[Made]:
    """Return the results of all processes, in rank order; if one fails, all fail."""
    import torch.distributed as dist

    error: Exception | None = None
    mine: Made | None = None
    try:
        mine = make()
    except Exception as raised:
        if is_told(raised):
            raise
        error = raised
    met: list[Any] = [None] * num_processes()
    try:
        dist.all_gather_object(met, (mine, None if error is None else _as_told(error)))
    except RuntimeError as broken:  # a lost connection: the other process was killed or stopped
        raise error or OtherProcessError("Another process of this run has ended.") from broken
    failures = [failure for _, failure in met if failure is not None]
    if error is not None:
        setattr(error, _TOLD, "here")
        raise error
    if failures:
        kind, words = failures[0]
        found = kind(words)
        setattr(found, _TOLD, "elsewhere")
        raise found
    return [value for value, _ in met]


def _as_told(error: Exception) -> tuple[type[Exception], str]:
    """Return the type and the message of an error, because not every error can be pickled."""
    kinds = [kind for kind in _KINDS if isinstance(error, kind)]
    return (kinds[0], str(error)) if kinds else (Exception, f"{type(error).__name__}: {error}")


def is_told(error: BaseException) -> bool:
    """Return whether all processes raised this error, so that the first one can report it for all."""
    return hasattr(error, _TOLD)


def is_of_another(error: BaseException) -> bool:
    """Return whether an error comes from another process, which shows its traceback."""
    return getattr(error, _TOLD, None) == "elsewhere"
