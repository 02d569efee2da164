"""Every kind of checkpoint that this package writes, loaded by one call."""

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
    """Load a pruned or sparse model for inference or further tuning, whichever way it was saved.

    Takes what every recipe and :func:`loraprune.save` write: stock checkpoints, those whose widths differ from layer to
    layer (their modeling file is not run; this package has the same class), sparse and quantized ones, and folders of
    packed 2:4 weights that ``loraprune export --format semi-structured`` wrote. The latter give torch's semi-structured
    tensors on a GPU, and ordinary ones elsewhere.

    Args:
        name: a folder, or a name on the hub.
        dtype: of the weights; None is the checkpoint's own. Packed 2:4 weights keep theirs.
        device: to load onto; None is the CPU, and for packed 2:4 weights the first GPU where there is one.
        trust_remote_code: run code that the checkpoint brings, where no library knows its class.
        revision: of a hub checkpoint.

    Returns:
        The model, of the class that its config names, in evaluation mode.

    Raises:
        CheckpointError: there is no such checkpoint, or files or tensors are missing from it.
        RuntimeFormatError: packed 2:4 weights are of another version, or the GPU does not multiply them.
    """
    folder = Path(name).expanduser()
    if is_packed(folder):
        return load_packed(folder, torch.device(device or default_device()))
    source = ModelSource.of(
        name, described=False, quantized=True, trust_remote_code=trust_remote_code, revision=revision
    )
    return source.load(dtype or source.stored_dtype, torch.device(device or "cpu"))
