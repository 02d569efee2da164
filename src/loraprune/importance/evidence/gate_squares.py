"""The gradient of a gate on every group, and the running sum of its squares: tensors in, tensors out."""

from __future__ import annotations

import torch

from loraprune.processes.ranks import mean_square


def gate_gradients(inputs: torch.Tensor, gradients: torch.Tensor, segments: tuple[int, ...]) -> torch.Tensor:
    """Gradient of the loss with respect to a gate of value 1 on every group, one sequence at a time.

    For a gate ``c_g`` that multiplies the features of group g: ``∂L/∂c_g = Σ_tokens Σ_features (∂L/∂x · x)``.

    Args:
        inputs: features ``x``, shape ``(batch, ..., features)``; the dimensions in between (tokens, rows and columns
            of an image) are summed over.
        gradients: ``∂L/∂x``, same shape.
        segments: number of features per group in each segment (see :class:`loraprune.structure.describe.Member`).

    Returns:
        Shape ``(batch, groups)``, float32.

    Source: Michel et al. 2019 (arXiv 1905.10650, Eq. 3), for every sequence and without the absolute value.
    """
    # One sequence at a time: on a CPU the product is reread from the cache, elsewhere it stays small.
    inputs, gradients = inputs.flatten(1, -2), gradients.flatten(1, -2)
    features = torch.stack([(x * g.float()).sum(0) for x, g in zip(inputs, gradients, strict=True)]).float()
    batch, length = features.shape
    groups = length // sum(segments)
    total = features.new_zeros(batch, groups)
    offset = 0
    for size in segments:
        total += features[:, offset : offset + groups * size].view(batch, groups, size).sum(2)
        offset += groups * size
    return total


class GateSquares:
    """Running sum of squared gate gradients of one dimension, and the number of sequences in it."""

    def __init__(self, segments: tuple[int, ...]) -> None:
        self.segments = segments
        self.total: torch.Tensor | None = None
        self.sequences = 0

    def add(self, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add one micro-batch."""
        squares = gate_gradients(inputs, gradients, self.segments).square_().sum(0)
        self.total = squares if self.total is None else self.total.add_(squares)
        self.sequences += inputs.shape[0]

    def take(self) -> torch.Tensor | None:
        """Return the mean square over the sequences since the last call, shape ``(groups,)``; None without any."""
        total, sequences = self.total, self.sequences
        self.total, self.sequences = None, 0
        return None if total is None else mean_square(total, sequences)
