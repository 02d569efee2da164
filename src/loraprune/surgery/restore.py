"""Layers behind a cut that lose nothing themselves, fitted so that they give what they gave before it."""

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
    """What several layers read; gathered once for all of them."""

    targets: StreamTargets
    layerwise: LayerwisePass
    names: tuple[str, ...]
    found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)

    def moments(self, weight: torch.Tensor, rows: slice) -> Moments:
        """With what the layer of a weight should give on some of the rows."""
        key = (rows.start, rows.stop)
        if key not in self.found:
            self.found[key] = self.targets.reader_statistics(self.layerwise, self.names, rows)
        moment, between, count = self.found[key]
        return Moments(moment, count, cross=weight @ between)


@torch.no_grad()
def restore_readers_(
    model: nn.Module, targets: StreamTargets, layerwise: LayerwisePass, writer: str, damping: float
) -> None:
    """Fit the layers that read the stream before a writer, so that they give what they gave on the uncut stream.

    With ``x`` what a layer reads now and ``x*`` what it read: ``W' = W + W E[(x* − x) xᵀ] (E[x xᵀ] + δI)⁻¹``, in
    which the ridge pulls towards the weights as they are.

    Args:
        model: the model or the ``PeftModel`` around it.
        targets: arrived at the block.
        layerwise: the pass over the model that is being cut, arrived at the block.
        writer: the layer before which readers are restored.
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
    """Fit a layer that writes to the stream and loses none of its inputs, so that the stream is that before the cut.

    The arguments are those of :func:`restore_readers_`.
    """
    module = base_model(model).get_submodule(writer)
    _fit_(module, weight_before(module), damping, partial(targets.statistics, layerwise, writer))


def _fit_(module: nn.Module, weight: torch.Tensor, damping: float, part: Callable[[slice], Moments]) -> None:
    moments = part(ALL_ROWS)
    columns = torch.arange(weight.shape[1], device=weight.device)
    try:
        fitted = held_back_columns(weight, moments, columns, damping, part)
    except NotPositiveDefiniteError:
        return  # as it is
    if fitted is not None:
        set_columns_(module, None, fitted)
