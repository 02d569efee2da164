"""Widths with which a model needs a smaller KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.measure.estimation.forward import forward_size
from loraprune.measure.estimation.shape_models import cut_shapes_
from loraprune.structure.given_widths import write_widths
from loraprune.structure.matching_widths import final_candidates
from loraprune.structure.plan import Plan
from loraprune.structure.widths import Widths, widest

if TYPE_CHECKING:
    import torch

    from loraprune.allocation.target import Target
    from loraprune.measure.estimation.shape_models import ShapeModels

ENDLESS = 2048
"""Length of the sequence, if the model's context has no limit."""


def widths_of_smaller_cache(
    shapes: ShapeModels, target: Target, wanted: float | str | None, dtype: torch.dtype, *, alone: bool
) -> str:
    """Restrict the allowed widths to those with a small enough cache.

    Args:
        shapes: shapes of the model.
        target: target of the pruning.
        wanted: share of the dense model's cache, below 1; or bytes of a sequence as long as the context.
        dtype: dtype of keys and values.
        alone: whether only KV heads are removed; otherwise the widths also meet the target.

    Returns:
        The widths, in the form of :attr:`loraprune.allocation.target.Target.widths`.

    Raises:
        ValueError: there are none, or KV heads are not pruned.
    """
    structure = shapes.structure
    if "heads" not in structure.kinds or shapes.task.name != "causal-lm":
        raise ValueError(
            "target_kv_cache needs KV heads to prune in a model that writes text, and here there are none. Leave "
            "target_kv_cache out."
        )
    measured: dict[int, int] = {}

    def all_cut(heads: int) -> int:
        if heads not in measured:
            measured[heads] = _cache_of(shapes, heads, dtype)
        return measured[heads]

    def cache(widths: Widths) -> int:
        kept = len(structure.protected) / len(structure.blocks)  # layers that keep all of their heads
        return round(kept * all_cut(dense["heads"]) + (1 - kept) * all_cut(widths["heads"]))

    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    legal = target.legal_widths(structure)
    limit = wanted * cache(dense) if isinstance(wanted, float) else int(wanted or 0)
    if alone:
        candidates = [{**dense, "heads": heads} for heads in reversed(legal.counts["heads"]) if heads < dense["heads"]]
    else:
        candidates = final_candidates(structure, dense, target.ratio, legal)
    found = [widths for widths in candidates if cache(widths) <= limit]
    if not found:
        least = cache({**dense, "heads": min(legal.counts["heads"])})
        raise ValueError(
            f"No widths have a KV cache of at most {limit / 1e6:.4g} MB: it has {least / 1e6:.4g} MB with the fewest "
            f"heads, and {cache(dense) / 1e6:.4g} MB before pruning (one sequence of the whole context)."
            f"{' Raise the target.' if alone else ' Raise the target, or leave the other goal out.'}"
        )
    return write_widths(found[:1] if alone else found)


def _cache_of(shapes: ShapeModels, heads: int, dtype: torch.dtype) -> int:
    """Cache bytes of a sequence as long as the context, in a model with this many KV heads."""
    model, structure = shapes.plain(shapes.few, dtype)
    fewer = {d.name: tuple(range(min(heads, d.num_groups))) for d in structure.of_kind("heads")}
    cut_shapes_(model, structure, Plan({**Plan.full(structure).kept, **fewer}))
    inputs = shapes.inputs(1, shapes.source.context or ENDLESS)
    return int(forward_size(model, structure, inputs, cached=True, depth=len(shapes.structure.blocks)).cache)
