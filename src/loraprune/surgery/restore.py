"""Layers after a cut that lose nothing themselves, fitted to restore their outputs before the cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from loraprune.calibration.features import ALL_ROWS
from loraprune.calibration.least_squares import Moments, NotPositiveDefiniteError, held_back_columns
from loraprune.layers.unwrap import base_model
from loraprune.surgery.effective_weights import set_columns_, weight_before

if TYPE_CHECKING:
    from torch import nn

    from loraprune.calibration.block_by_block import LayerwisePass
    from loraprune.calibration.residual_stream import StreamTargets


@dataclass
class _Read:
    """Inputs that several layers share, collected once for all of them."""

    targets: StreamTargets
    layerwise: LayerwisePass
    names: tuple[str, ...]
    found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)

    def moments(self, weight: torch.Tensor, rows: slice) -> Moments:
        """Return the moments over some of the rows, with the target of the layer that has this weight."""
        key = (rows.start, rows.stop)
        if key not in self.found:
            self.found[key] = self.targets.reader_statistics(self.layerwise, self.names, rows)
        moment, between, count = self.found[key]
        return Moments(moment, count, cross=weight @ between)


@torch.no_grad()
def restore_readers_(
    model: nn.Module, targets: StreamTargets, layerwise: LayerwisePass, writer: str, damping: float
) -> None:
    """Fit the layers that read the stream before a writer, to restore their outputs on the uncut stream.

    With ``x`` the current input of a layer and ``x*`` its input before: ``W' = W + W E[(x* − x) xᵀ] (E[x xᵀ] + δI)⁻¹``.
    The ridge pulls towards the current weights.

    Args:
        model: the model or the ``PeftModel`` around it.
        targets: targets, positioned at the block.
        layerwise: pass over the model that is being cut, positioned at the block.
        writer: layer before which readers are restored.
        damping: ridge as a share of the mean diagonal.
    """
    for names in targets.readers_before(writer):
        read = _Read(targets, layerwise, names)
        for name in names:
            module = base_model(model).get_submodule(name)
            weight = weight_before(module)
            _fit_(module, weight, damping, partial(read.moments, weight))


@torch.no_grad()
def restore_writer_(
    model: nn.Module, targets: StreamTargets, layerwise: LayerwisePass, writer: str, damping: float
) -> None:
    """Fit a layer that writes to the stream and loses no inputs, to restore the stream before the cut.

    For the arguments see :func:`restore_readers_`.
    """
    module = base_model(model).get_submodule(writer)
    _fit_(module, weight_before(module), damping, targets.gather(layerwise, writer).part)


def _fit_(module: nn.Module, weight: torch.Tensor, damping: float, part: Callable[[slice], Moments]) -> None:
    moments = part(ALL_ROWS)
    columns = torch.arange(weight.shape[1], device=weight.device)
    try:
        fitted = held_back_columns(weight, moments, columns, damping, part)
    except NotPositiveDefiniteError:
        return  # the layer keeps its weights
    if fitted is not None:
        set_columns_(module, None, fitted)
