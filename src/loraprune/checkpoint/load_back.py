"""A saved checkpoint, loaded back as its users will load it, and compared with the model that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import auto_class_of, is_remote, loading_class
from loraprune.record.numbers import counted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_TOKENS = 8
_STEPS = 8
"""How many steps of the dtype two ways of computing the same may lie apart."""
_LEAST = 1e-3


class LoadBackError(ArithmeticError):
    """A saved checkpoint does not load, or computes something else than the model that was saved."""


def load_back(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The checkpoint in a folder by plain transformers, in the dtype that it is saved in, where the model is.

    Args:
        folder: of the checkpoint.
        model: that was saved there.

    Raises:
        LoadBackError: it does not load, or tensors are missing from it.
    """
    import transformers

    auto_class = loading_class(type(model).__name__) or auto_class_of(model.config)
    try:
        loaded, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype="auto",
            trust_remote_code=is_remote(model.config),
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise LoadBackError(f"The result that was saved cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted(info["missing_keys"] if isinstance(info, dict) else info.missing_keys)
    if missing:
        raise LoadBackError(
            f"The result that was saved lacks {counted(len(missing), 'tensor')}, the first is {missing[0]}."
        )
    placed: PreTrainedModel = loaded.to(model.device).eval()
    return placed


def few_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs of a forward pass that costs next to nothing: some tokens, shape ``(1, 8)``, or one picture of noise."""
    config: Any = model.config
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=generator)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    vocabulary = config.get_text_config().vocab_size
    ids = (torch.arange(1, _TOKENS + 1, device=model.device) * 7919 % vocabulary)[None]
    return {"input_ids": ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {})}


@torch.no_grad()
def check_loads_back(folder: Path, model: PreTrainedModel) -> None:
    """Make sure that a saved checkpoint loads, and gives the logits of the model that was saved.

    Both compute on the model's device; their logits may differ, in norm, by some steps of the saved dtype.

    Args:
        folder: of the checkpoint.
        model: that was saved there, in evaluation mode.

    Raises:
        LoadBackError: it does not.
    """
    inputs = few_inputs(model)
    expected = model(**inputs)[0].float()
    found = load_back(folder, model)(**inputs)[0].float()
    if expected.shape != found.shape:
        raise LoadBackError(f"The result that was saved has outputs of other shapes: {list(found.shape)}.")
    apart = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    allowed = max(_STEPS * torch.finfo(model.dtype).eps, _LEAST)
    if not apart <= allowed:
        raise LoadBackError(
            f"The result that was saved is not the model that was made: loaded back, its outputs on {_TOKENS} tokens "
            f"differ by {apart:.2g} of their norm ({allowed:.2g} would be rounding). Please report this, with its "
            "config.json."
        )
