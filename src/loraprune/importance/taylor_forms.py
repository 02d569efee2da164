"""First- and second-order importance of one layer's weights, from its inputs and the gradient of its output."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from loraprune.layers.lora import effective_weight, row_blocks
from loraprune.processes.ranks import averaged_gradient, num_processes, summed, total

if TYPE_CHECKING:
    from torch import nn

ADDITIVE = ("second", "vectorize")
"""Forms that add up over micro-batches, so no gradient must be kept until the end of the step."""


def importance(weight: torch.Tensor, gradient: torch.Tensor, squares: torch.Tensor | None, form: str) -> torch.Tensor:
    """Importance of single weights; all arguments and the result have the same shape.

    Args:
        weight: effective weights ``w``.
        gradient: ``g``, gradient of the mean loss.
        squares: mean over the sequences of the squared gradient of one sequence's loss, ``E[g_b²]``; for ``second`` and
            ``mix``.
        form: ``squared`` ``(w·g)²``, ``first`` ``|w·g|``, ``second`` ``w²·E[g_b²]``, ``mix``
            ``|w·g − ½·w²·E[g_b²]|``, ``vectorize`` ``w·g`` with its sign, to be summed by the caller.

    Source: LoRAPrune (arXiv 2305.18403) for ``squared``, its vanilla criterion; LLM-Pruner (arXiv 2305.11627, Eq. 3 to
    5, and its code) for the others. Half the Fisher information replaces the second-order term.
    """
    if form == "second":
        assert squares is not None
        return weight.square() * squares
    first = weight * gradient
    if form == "squared":
        return first.square()
    if form == "vectorize":
        return first
    if form == "mix":
        assert squares is not None
        first = first - 0.5 * weight.square() * squares
    return first.abs()


class LayerTaylor:
    """Sums the importance of one layer's weights along its sides, over the micro-batches of a step.

    Nothing as large as the weight is allocated unless gradients must be kept: in a step with several micro-batches,
    for forms that do not add up.

    Args:
        module: the layer, or peft's wrapper around it.
        sides: sides on which groups lie: ``output``, ``input`` or both.
        form: see :func:`importance`.
        at_once: whether a step has only one micro-batch.
        offload: whether gradients that must be kept are kept in CPU memory.
    """

    def __init__(
        self, module: nn.Module, sides: Collection[str], form: str, *, at_once: bool = False, offload: bool = False
    ) -> None:
        self._module = module
        self._sides = tuple(sides)
        self._form = form
        self._at_once = at_once or form in ADDITIVE
        self._offload = offload
        self._sums: dict[str, torch.Tensor] = {}
        self._gradient: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self._sequences = 0

    @torch.no_grad()
    def add(self, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add one micro-batch: the layer's inputs and the gradient of its output, one row per token."""
        batch = inputs.shape[0]
        self._sequences += batch
        inputs = inputs.to(gradients.dtype)
        rows, columns = gradients.shape[-1], inputs.shape[-1]
        for block in row_blocks(rows, columns):
            if self._at_once:
                # Additive forms are multiplied by the number of sequences at the end.
                count = 1 if self._form in ADDITIVE else batch
                gradient, squares = self._of_rows(inputs, gradients[..., block])
                scaled = None if squares is None else squares * count
                self._add_up(block, rows, gradient, scaled)
            else:
                self._keep(block, (rows, columns), inputs, gradients[..., block])

    def _of_rows(self, inputs: torch.Tensor, gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradient of some rows of the weight, and the sum over sequences of the squared gradient of each sequence."""
        if self._form not in ("second", "mix"):
            return (gradients.flatten(0, 1).T @ inputs.flatten(0, 1)).float(), None
        gradient = squares = None
        for own, entered in zip(gradients, inputs, strict=True):
            part = (own.T @ entered).float()
            gradient = part if gradient is None else gradient + part
            squares = part.square() if squares is None else squares.add_(part.square())
        assert gradient is not None
        return gradient, squares

    def _add_up(self, block: slice, rows: int, gradient: torch.Tensor, squares: torch.Tensor | None) -> None:
        of_weights = importance(effective_weight(self._module, block), gradient, squares, self._form)
        for side in self._sides:
            length = rows if side == "output" else of_weights.shape[1]
            total = self._sums.setdefault(side, of_weights.new_zeros(length))
            if side == "output":
                total[block] += of_weights.sum(1)
            else:
                total += of_weights.sum(0)

    def _keep(self, block: slice, shape: tuple[int, int], inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Keep the gradient in its own dtype, as autograd would, and squares in 32 bits."""
        gradient, squares = self._of_rows(inputs, gradients)
        device = torch.device("cpu") if self._offload else gradients.device
        if self._gradient is None:
            self._gradient = torch.zeros(shape, dtype=gradients.dtype, device=device)
        self._gradient[block] += gradient.to(device, gradients.dtype)
        if squares is not None:
            if self._squares is None:
                self._squares = torch.zeros(shape, device=device)
            self._squares[block] += squares.to(device)

    @torch.no_grad()
    def take(self) -> dict[str, torch.Tensor] | None:
        """Return the importance of each position along each side since the last call, float32; None without any."""
        if self._sequences == 0:
            return None
        sequences = total(self._sequences)
        if self._gradient is not None:
            device = next(self._module.parameters()).device
            rows, columns = self._gradient.shape
            for block in row_blocks(rows, columns):
                gradient = averaged_gradient(self._gradient[block].to(device).float())
                squares = None if self._squares is None else self._of_all(self._squares[block].to(device)) * sequences
                self._add_up(block, rows, gradient, squares)
        elif self._form in ADDITIVE:
            of_all = self._of_all if self._form == "second" else averaged_gradient
            self._sums = {side: of_all(added) for side, added in self._sums.items()}
        factor = sequences if self._form == "second" else 1
        taken = {side: added.abs() * factor for side, added in self._sums.items()}
        self.clear()
        return taken

    @staticmethod
    def _of_all(squares: torch.Tensor) -> torch.Tensor:
        """Squared gradients of single sequences, summed over all processes."""
        return squares if num_processes() == 1 else summed(squares) / num_processes() ** 2

    def clear(self) -> None:
        """Discard the sums."""
        self._sums, self._gradient, self._squares, self._sequences = {}, None, None, 0
