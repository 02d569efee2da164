"""Work that the processes of a run share out among themselves, and errors that end all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from loraprune.processes.ranks import OtherProcessError, num_processes

Made = TypeVar("Made")

_STRETCHES = 16
"""How many times processes meet while they work on something that is shared: an error is heard of no later."""

_TOLD = "_loraprune_told"
_KINDS = (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError)
"""What an error of another process becomes: the first of these that it is."""


def together(make: Callable[[], Made]) -> Made:
    """What this process makes; where one of the processes fails, all of them do.

    All have to call it. An error is raised in the process that it comes from, and in the others with the same words.
    Inside, processes may share work, but not call :func:`~loraprune.processes.ranks.from_main`, for which one that has
    failed does not wait.

    Raises:
        Exception: what ``make`` raised, here or in another process.
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
    """What is made of each of so many things, in their order.

    Args:
        count: how many there are.
        make: makes something of the thing of a number; plain values, which go from process to process.
        shared: share them out among the processes, all of which have to call this with the same things.
        sizes: of the things, for ``progress``; None counts each as 1.
        progress: called with the size of what is done, and of all.

    Raises:
        Exception: what ``make`` raised, here or in another process.
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
        done += weights[number] * processes  # the others are about as far
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
    """What each process makes, in the order of the processes; where one of them fails, all do."""
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
    except RuntimeError as broken:  # a connection: the other one was killed, or stopped
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
    """The kind of an error and its words: errors themselves do not always travel."""
    kinds = [kind for kind in _KINDS if isinstance(error, kind)]
    return (kinds[0], str(error)) if kinds else (Exception, f"{type(error).__name__}: {error}")


def is_told(error: BaseException) -> bool:
    """Whether all processes have raised an error, so that the first one can say it for all."""
    return hasattr(error, _TOLD)


def is_of_another(error: BaseException) -> bool:
    """Whether an error comes from another process, which shows where in its code."""
    return getattr(error, _TOLD, None) == "elsewhere"
