"""Check of a saved checkpoint: load it with plain transformers and compare its outputs with the model's."""

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
"""Largest difference between both outputs, in rounding steps (eps) of the dtype."""
_LEAST = 1e-3


class LoadBackError(ArithmeticError):
    """A saved checkpoint does not load, or its outputs differ from those of the model that was saved."""


def load_back(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """Load a saved checkpoint with plain transformers, in its own dtype and on the device of ``model``.

    Args:
        folder: folder of the checkpoint.
        model: model that was saved there.

    Raises:
        LoadBackError: the checkpoint does not load, or lacks tensors.
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
        raise LoadBackError(f"The saved result cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = sorted(info["missing_keys"] if isinstance(info, dict) else info.missing_keys)
    if missing:
        raise LoadBackError(f"The saved result lacks {counted(len(missing), 'tensor')}, the first is {missing[0]}.")
    placed: PreTrainedModel = loaded.to(model.device).eval()
    return placed


def few_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return inputs for one cheap forward pass: eight tokens, shape ``(1, 8)``, or one image of noise."""
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
    """Make sure that a saved checkpoint loads and gives the outputs of the model that was saved.

    Both run on the model's device. The norm of the difference may be a few rounding steps of the dtype, relative to
    the norm of the outputs.

    Args:
        folder: folder of the checkpoint.
        model: model that was saved there, in evaluation mode.

    Raises:
        LoadBackError: the checkpoint does not load, or its outputs differ.
    """
    inputs = few_inputs(model)
    expected = model(**inputs)[0].float()
    found = load_back(folder, model)(**inputs)[0].float()
    if expected.shape != found.shape:
        raise LoadBackError(f"The saved result has outputs of another shape: {list(found.shape)}.")
    apart = float((found - expected).norm() / expected.norm().clamp_min(1e-30))
    allowed = max(_STEPS * torch.finfo(model.dtype).eps, _LEAST)
    if not apart <= allowed:
        raise LoadBackError(
            f"The saved result does not compute what the model does: loaded back, its outputs on {_TOKENS} tokens "
            f"differ by {apart:.2g} of their norm (rounding accounts for at most {allowed:.2g}). Please report this, "
            "with its config.json."
        )
