"""How the scores that the layers of a group give it become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

GroupReduction = Literal["sum", "mean", "max", "prod", "first", "last"]
GROUP_REDUCTIONS: tuple[str, ...] = get_args(GroupReduction)


@torch.no_grad()
def reduced(parts_LG: Sequence[torch.Tensor], how: str = "sum") -> torch.Tensor:
    """One score a group from the scores that each of the coupled layers gives it.

    Args:
        parts_LG: of every layer, not negative, shape ``(groups,)`` each; the consumer comes last.
        how: ``sum``, ``mean`` or ``max``; ``prod``: the product, as the geometric mean, which puts groups in the same
            order, keeps the unit of the scores, and stays in the range of 32 bits where the product would not;
            ``first`` or ``last``: that layer alone.

    Returns:
        Shape ``(groups,)``.

    Source: LLM-Pruner (arXiv 2305.11627, section 3.2: sum, product, max, last only); ``mean`` and ``first`` complete
    the list.
    """
    if how == "first":
        return parts_LG[0]
    if how == "last":
        return parts_LG[-1]
    stacked_LG = torch.stack(list(parts_LG))
    if how == "sum":
        return stacked_LG.sum(0)
    if how == "mean":
        return stacked_LG.mean(0)
    if how == "max":
        return stacked_LG.amax(0)
    if how == "prod":
        return stacked_LG.log().mean(0).exp()
    raise ValueError(f"group_reduction is {how!r}; choose one of {', '.join(GROUP_REDUCTIONS)}.")
