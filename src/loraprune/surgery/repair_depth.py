"""Repair of a model that loses whole blocks: the layers around a gap restore the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from loraprune.calibration.block_by_block import LayerwisePass
from loraprune.calibration.progress import Progress
from loraprune.calibration.residual_stream import StreamTargets
from loraprune.layers.unwrap import eval_mode
from loraprune.surgery.restore import restore_writer_

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure


@torch.no_grad()
def repair_gaps_(
    model: nn.Module,
    structure: Structure,
    stay: Sequence[int],
    sequences: Sequence[torch.Tensor],
    damping: float,
    *,
    device: torch.device | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Fit a model, in place, to run without some of its blocks, which are still present.

    The last layer before a gap that writes to the residual stream is fitted to the stream of the uncut model after
    the gap. Every later writer is fitted to the stream at its own position: ``min_U E‖t − (W + U) x‖²`` with a ridge on
    ``U``, chosen on rows that were not used for the fit.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: structure of the current model.
        stay: numbers of the blocks that stay, ascending.
        sequences: token ids, 1-D tensors of any length.
        damping: smallest ridge, as a share of the mean diagonal of the second moment of a layer's inputs.
        device: device to compute on, if it is not the model's.
        progress: function that receives the progress of the work.

    Raises:
        NoStreamError: blocks of the model do more than add to a residual stream.

    Source: ReplaceMe (arXiv 2505.02819) replaces a gap by a linear map that is merged into the layer before it.
    """
    total = len(structure.blocks)
    with eval_mode(model):
        targets = StreamTargets(model, structure, sequences, device)
        without = LayerwisePass(model, structure, sequences, device)
        progress(0, total)
        behind_a_gap, layer = False, 0
        while layer < total:
            stays = layer in stay
            if stays:
                targets.begin_block(layer)
                layer += 1
            gap = 0
            while layer < total and layer not in stay:
                targets.look_past_block()
                layer, gap = layer + 1, gap + 1
            if stays:
                if gap and not behind_a_gap:
                    restore_writer_(model, targets, without, targets.writers[-1], damping)
                elif behind_a_gap:
                    for writer in targets.writers:
                        restore_writer_(model, targets, without, writer, damping)
                without.advance()
            for _ in range(gap):
                without.leave_out()
            behind_a_gap |= gap > 0
            progress(layer, total)
