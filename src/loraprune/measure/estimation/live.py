"""Bytes and arithmetic of tensors that exist by shape alone: a training step on the meta device, watched."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class LiveShapes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made and not yet freed while it is on, and what computing them takes.

    Tensors on the meta device take no memory, yet their storages have a size and a lifetime: those that the same
    operations would have on a device. What a kernel allocates for itself is not seen.

    Args:
        held: tensors that are there all the time: weights, the optimizer's state.

    Attributes:
        now: bytes that are alive.
        starts: bytes that were alive when each segment began, for the first time.
        peaks: the most bytes that were alive in each segment.
        flops: floating point operations of each segment, two for a multiplication with an addition.
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.starts: dict[str, int] = {}
        self.peaks: dict[str, int] = {}
        self.flops: dict[str, int] = defaultdict(int)
        self._live: dict[int, tuple[int, Any]] = {}
        self._segment = ""
        for tensor in held:
            self._count(tensor)

    def begin(self, segment: str) -> None:
        """What follows belongs to a segment, until the next one begins; a segment may come again."""
        self._segment = segment
        self.starts.setdefault(segment, self.now)
        self.peaks[segment] = max(self.peaks.get(segment, 0), self.now)

    @property
    def segment(self) -> str:
        """The one that runs."""
        return self._segment

    def forget(self) -> None:
        """Forget all segments; what is alive stays counted."""
        self.starts, self.peaks, self.flops, self._segment = {}, {}, defaultdict(int), ""

    def add_flops(self, count: int) -> None:
        """Arithmetic of a kernel that is stood in for."""
        self.flops[self._segment] += count

    def _forget(self, key: int, reference: object) -> None:
        self.now -= self._live.pop(key)[0]

    def _count(self, value: object) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        self._live[key] = (size, weakref.ref(storage, partial(self._forget, key)))
        self.now += size
        if self._segment and self.now > self.peaks[self._segment]:
            self.peaks[self._segment] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops[self._segment] += formula(*args, **(kwargs or {}), out_val=result)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            self._count(value)
        return result
