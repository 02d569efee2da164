"""One function that loads every kind of checkpoint that this package writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.checkpoint.exports.semi_structured import is_packed, load_packed
from loraprune.checkpoint.load import default_device
from loraprune.checkpoint.source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a pruned or sparse model for inference or further tuning.

    It loads what every recipe and :func:`loraprune.save` write:

    - stock checkpoints;
    - checkpoints whose widths differ between layers; this package has their class and does not run their modeling file;
    - sparse and quantized checkpoints;
    - packed 2:4 weights from ``loraprune export --format semi-structured``. They become torch's semi-structured tensors
      on a GPU, and dense tensors elsewhere.

    Args:
        name: a folder, or a name on the Hub.
        dtype: dtype of the weights; None is the checkpoint's own. Packed 2:4 weights keep theirs.
        device: device to load onto; None is the CPU. For packed 2:4 weights, None is the first GPU, if there is one.
        trust_remote_code: run code from the checkpoint if neither transformers nor loraprune has its class.
        revision: revision of a Hub checkpoint.

    Returns:
        The model, of the class that its config names, in evaluation mode.

    Raises:
        CheckpointError: there is no such checkpoint, or files or tensors are missing from it.
        RuntimeFormatError: packed 2:4 weights are of another version, or the GPU cannot multiply them.
    """
    folder = Path(name).expanduser()
    if is_packed(folder):
        return load_packed(folder, torch.device(device or default_device()))
    source = ModelSource.of(
        name, described=False, quantized=True, trust_remote_code=trust_remote_code, revision=revision
    )
    return source.load(dtype or source.stored_dtype, torch.device(device or "cpu"))
