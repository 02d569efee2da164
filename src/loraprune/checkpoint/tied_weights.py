"""A head that shares the weight of the embedding, or does not: the tensors say it, and the config follows them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("loraprune")


def says_tied(config: PretrainedConfig) -> bool:
    """Whether a config promises one weight for embedding and head, and can be made to promise two.

    That of an encoder-decoder cannot: T5 takes "not tied" for a wish to leave the decoder's output unscaled.
    """
    return bool(getattr(config, "tie_word_embeddings", False)) and not getattr(config, "is_encoder_decoder", False)


def untie_config_(config: PretrainedConfig, name: str, *, said: bool = True) -> None:
    """Write into a config that embedding and head are two weights; ``said`` logs that it was mended."""
    config.tie_word_embeddings = False
    if said:
        logger.warning(
            "warning: The head of %s differs from its embedding, although its config says that they are tied: both are "
            "kept, with tie_word_embeddings=False in the config.",
            name,
        )


@torch.no_grad()
def mend_tied_(model: PreTrainedModel, name: str = "the model", *, said: bool = True) -> None:
    """Let the config of a plain model say what its tensors do; two equal tensors become one.

    Args:
        model: without an adapter around its head.
        name: to call it by.
        said: log that the config was mended.
    """
    if not says_tied(model.config):
        return
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    one, other = getattr(embedding, "weight", None), getattr(head, "weight", None)
    if one is None or other is None or one is other or one.is_meta or other.is_meta:
        return
    if one.shape == other.shape and torch.equal(one.to(other.device), other):
        head.weight = one
    else:
        untie_config_(model.config, name, said=said)
