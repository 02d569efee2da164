"""Floating-point operations of a call: matrix products, convolutions and attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONVENTION = "a multiply-add is two; attention in full, without the causal half"


def _attention(query: Sequence[int], keys: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    """Scores and weighted sums. With fewer key heads than query heads, each key head is used several times."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * keys[-2] * (width + values[-1])


def _grouped(rows: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> int:
    """Product of each row with the matrix of its group, as for the experts of a mixture."""
    return 2 * math.prod(rows) * weights[-1]


_FUSED = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""Attention kernels. torch's own table has none for the CPU and, up to 2.8, none for grouped heads."""

_GROUPED = (("aten", "_grouped_mm"), ("transformers", "grouped_mm_fallback"))
"""Products of the rows of each group. transformers uses the second one if torch has no such kernel."""


COUNTED = ("sdpa", "eager")
"""Attention implementations with operations that have a formula, in order of preference."""


@contextmanager
def countable_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use countable attention in a model for the duration of a block.

    Kernels unknown to torch (flash attention, flex attention) would count as zero. The number of operations is the same
    for every implementation.
    """
    own = model.config._attn_implementation
    if own in (*COUNTED, None):
        yield
        return
    for other in COUNTED:
        try:
            model.set_attn_implementation(other)
            break
        except ValueError:  # the class does not support this attention
            continue
    try:
        yield
    finally:
        model.set_attn_implementation(own)


def flops_of(call: Callable[[], object]) -> int:
    """Count the operations of a call. A multiply-add is two; attention counts in full, not only its causal half."""
    formulas: dict[Any, Callable[..., int]]
    formulas = {getattr(torch.ops.aten, name): _attention for name in _FUSED if hasattr(torch.ops.aten, name)}
    for namespace, name in _GROUPED:
        operators = getattr(torch.ops, namespace)
        if hasattr(operators, name):
            formulas[getattr(operators, name)] = _grouped
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    return int(counter.get_total_flops())
