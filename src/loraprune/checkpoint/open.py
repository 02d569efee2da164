"""Every kind of checkpoint that this package writes, loaded by one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.exports.semi_structured import DESCRIPTION, load_semi_structured, load_unpacked
from loraprune.checkpoint.load import auto_class_of, checkpoint_dtype, load_config, load_model

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
    name = Path(name).expanduser() if str(name).startswith("~") else name
    if (Path(name) / DESCRIPTION).is_file():
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type == "cuda":
            return load_semi_structured(name, chosen)
        unpacked: Any = load_unpacked(Path(name))
        return unpacked.to(chosen)
    name = str(name)
    config = load_config(name, trust_remote_code=trust_remote_code, revision=revision, described=False, quantized=True)
    model = load_model(
        name,
        dtype or checkpoint_dtype(config),
        torch.device(device or "cpu"),
        auto_class=auto_class_of(config),
        trust_remote_code=trust_remote_code,
        revision=revision,
        quantized=getattr(config, "quantization_config", None) is not None,
    )
    return model.eval()
