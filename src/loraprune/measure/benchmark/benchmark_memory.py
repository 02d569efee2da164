"""Whether a benchmark has the memory that it needs, and what to do where it has not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from loraprune.measure.benchmark.contenders import Rival
from loraprune.recipes.steps.measure import free_memory

GIGA = 1e9
OUT_OF_MEMORY = "can't allocate memory"
"""What torch says where a CPU has no more; an accelerator has an error of its own."""


def check_memory(rivals: Sequence[Rival], dtype: torch.dtype, device: torch.device) -> None:
    """Make sure that there is room for the weights of all models.

    Raises:
        ValueError: there is not.
    """
    needed = sum(rival.parameters() for rival in rivals) * dtype.itemsize
    free = free_memory(device)
    if needed > free:
        raise ValueError(
            f"The weights of {len(rivals)} models take {needed / GIGA:.3g} GB, and {device} has {free / GIGA:.3g} GB "
            f"free. {_remedy(one_at_a_time=False)}"
        )


def _remedy(*, one_at_a_time: bool) -> str:
    smaller = "choose fewer tokens, a smaller batch or --dtype bfloat16"
    if one_at_a_time:
        return f"{smaller.capitalize()}."
    return f"Load one after the other (--one-at-a-time), or {smaller}."


@contextmanager
def memory_reported(device: torch.device, *, one_at_a_time: bool) -> Iterator[None]:
    """Say what to do where there is not enough memory for a block.

    Raises:
        ValueError: there is not.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or OUT_OF_MEMORY in str(error)
        if not short:
            raise
        raise ValueError(f"The memory of {device} does not suffice. {_remedy(one_at_a_time=one_at_a_time)}") from error
