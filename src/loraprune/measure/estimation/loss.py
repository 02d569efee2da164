"""The loss of a language model on the meta device: trl's head, which never makes all logits at once."""

from __future__ import annotations

from typing import Any

import torch

TILE_TOKENS = 4096
TILE_WORDS = 32768
"""Logits that trl (1.10) computes at a time."""

ROW_STATISTICS = 7
"""Numbers in 32 bits that it keeps of each token while it goes through the vocabulary."""


TORCH_TILES = (3.0, 7.25)
"""Tiles in 32 bits that operations of torch make at a time where there is no Triton: forwards and backwards."""


class _FusedLoss(torch.autograd.Function):
    """Memory and arithmetic of trl's ``ChunkedLogProbFunction``."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, triton: bool) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.dtype, ctx.triton = dtype, triton
        statistics = hidden.new_empty((ROW_STATISTICS, len(hidden)), dtype=torch.float32)
        _tiles(hidden, weight, dtype, 0.0 if triton else TORCH_TILES[0])
        del statistics
        return hidden.new_empty(len(hidden), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        hidden, weight = ctx.saved_tensors
        summed = hidden.new_empty(hidden.shape, dtype=torch.float32)
        _tiles(hidden, weight, ctx.dtype, 0.0 if ctx.triton else TORCH_TILES[1], summed)
        return summed.to(hidden.dtype), None, None, None


def _tiles(
    hidden: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, beside: float, gradient: torch.Tensor | None = None
) -> None:
    """Compute every logit once, in one buffer; a head in another dtype is converted tile by tile.

    Args:
        hidden: rows of hidden states.
        weight: of the head.
        dtype: to compute in.
        beside: tiles in 32 bits that are made on the way.
        gradient: of the hidden states, where that is added up from the tiles, too.
    """
    buffer = hidden.new_empty((min(len(hidden), TILE_TOKENS), TILE_WORDS), dtype=dtype)
    for start in range(0, len(hidden), TILE_TOKENS):
        rows = hidden[start : start + TILE_TOKENS].to(dtype)
        for first in range(0, len(weight), TILE_WORDS):
            words = weight[first : first + TILE_WORDS].to(dtype)
            tile = buffer[: len(rows), : len(words)]
            torch.mm(rows, words.T, out=tile)
            work = hidden.new_empty(int(beside * tile.numel()), dtype=torch.float32)
            del work
            if gradient is not None:
                torch.mm(tile, words)


def fused_loss(hidden_BTH: torch.Tensor, head: torch.nn.Linear, device: str, *, autocast: bool) -> torch.Tensor:
    """The mean loss over all tokens but the first of each sequence, by shape.

    Args:
        hidden_BTH: what the last block gives, normed.
        head: the language model's.
        device: that is stood in for: on ``cuda`` kernels of Triton work on one tile, on ``cpu`` operations of torch
            make several of its size.
        autocast: whether products are computed in bfloat16.
    """
    hidden = hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])
    dtype = torch.bfloat16 if autocast else hidden.dtype
    fused: Any = _FusedLoss
    losses: torch.Tensor = fused.apply(hidden, head.weight, dtype, device == "cuda")
    return losses.mean()
