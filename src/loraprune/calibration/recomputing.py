"""Blocks whose activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from loraprune.calibration.block_by_block import CACHES
from loraprune.layers.unwrap import give_back_forward_, own_forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a forward pass so that it keeps only its inputs and runs again in the backward pass."""

    def run(*args: Any, **kwargs: Any) -> Any:
        # Run twice, it would write to a cache twice.
        kwargs |= {name: None for name in CACHES if name in kwargs}
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


@contextmanager
def recomputing(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Recompute the activations of each block instead of keeping them, for a ``with`` block.

    transformers' gradient checkpointing works in training mode only, in which some blocks apply dropout (OPT, Falcon).
    It also leaves the embeddings' outputs with gradients.
    """
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(give_back_forward_, block, own_forward(block))
            block.forward = _recomputed(block.forward)
        yield
