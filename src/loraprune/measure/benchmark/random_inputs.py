"""Random input for models that read text or images."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TARGET_TOKENS = 64
"""Maximum number of decoder tokens for an encoder-decoder model."""
IMAGE_SIZE = 224
"""Image size for a model whose config names none, because it accepts any."""


@dataclass(frozen=True, kw_only=True)
class InputSize:
    """Size of a model's input; for images, only the batch matters.

    Attributes:
        batch_size: sequences or images per call.
        tokens: tokens per sequence.
        seed: seed of the random content.
    """

    batch_size: int = 1
    tokens: int = 2048
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def target_tokens(self) -> int:
        """Tokens of the decoder in an encoder-decoder model."""
        return min(TARGET_TOKENS, self.tokens)


def reads_images(model: PreTrainedModel) -> bool:
    """Whether the model's input is pixels."""
    return model.main_input_name == "pixel_values"


def writes_text(model: PreTrainedModel) -> bool:
    """Whether a model can generate with a cache."""
    return not reads_images(model) and bool(model.can_generate())


def random_ids(config: PretrainedConfig, size: InputSize, tokens: int, device: torch.device) -> torch.Tensor:
    """Token ids of a batch, shape ``(batch_size, tokens)``, without the padding token."""
    generator = torch.Generator().manual_seed(size.seed)
    ids = torch.randint(config.vocab_size, (size.batch_size, tokens), generator=generator)
    pad = getattr(config, "pad_token_id", None)
    if pad is not None:
        ids[ids == pad] = (pad + 1) % config.vocab_size
    return ids.to(device)


def prefill_inputs(model: PreTrainedModel, size: InputSize, device: torch.device) -> dict[str, Any]:
    """Return the arguments of one forward pass like the first one of generation.

    A causal model fills its cache and returns only the logits of the last token, if its class supports that. An
    encoder-decoder model reads a source and a short target. Classifiers read a batch.
    """
    if reads_images(model):
        return {"pixel_values": random_pixels(model, size, device)}
    ids = random_ids(model.config, size, size.tokens, device)
    if model.config.is_encoder_decoder:
        targets = random_ids(model.config, size, size.target_tokens, device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "decoder_input_ids": targets,
            "use_cache": True,
        }
    if not writes_text(model):
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"input_ids": ids, "use_cache": True} | last_logits(model)


def last_logits(model: PreTrainedModel) -> dict[str, Any]:
    """Argument that makes a causal model return only the last token's logits; empty if its class has none."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def training_inputs(model: PreTrainedModel, size: InputSize, device: torch.device) -> dict[str, Any]:
    """Arguments of one forward pass that returns a loss."""
    config = model.config
    generator = torch.Generator().manual_seed(size.seed)
    if reads_images(model) or not writes_text(model):
        labels = torch.randint(config.num_labels or 1, (size.batch_size,), generator=generator).to(device)
        return prefill_inputs(model, size, device) | {"labels": labels}
    ids = random_ids(config, size, size.tokens, device)
    if config.is_encoder_decoder:
        labels = random_ids(config, size, size.target_tokens, device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def random_pixels(model: PreTrainedModel, size: InputSize, device: torch.device) -> torch.Tensor:
    """Random images, shape ``(batch_size, channels, height, width)``, in the model's dtype."""
    height, width = image_size(model.config)
    channels = int(getattr(model.config, "num_channels", 3))
    generator = torch.Generator().manual_seed(size.seed)
    pixels = torch.randn(size.batch_size, channels, height, width, generator=generator)
    return pixels.to(device, model.dtype)


def image_size(config: PretrainedConfig) -> tuple[int, int]:
    """Height and width of a model's images."""
    stated = getattr(config, "image_size", None) or IMAGE_SIZE
    height, width = (stated, stated) if isinstance(stated, int) else stated
    return int(height), int(width)


def inputs_in_words(model: PreTrainedModel, size: InputSize) -> str:
    """Description of the input of a forward pass: ``"1 × 2048 tokens"``."""
    if reads_images(model):
        height, width = image_size(model.config)
        return f"{size.batch_size} × {getattr(model.config, 'num_channels', 3)}×{height}×{width} pixels"
    if model.config.is_encoder_decoder:
        return f"{size.batch_size} × {size.tokens} source and {size.target_tokens} target tokens"
    return f"{size.batch_size} × {size.tokens} tokens"
