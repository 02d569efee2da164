"""Tied and untied heads: the tensors decide whether head and embedding share a weight, and the config follows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("loraprune")


def says_tied(config: PretrainedConfig) -> bool:
    """Whether a config ties head and embedding, and can be changed to untied.

    That of an encoder-decoder cannot: in T5, "not tied" also means that the decoder's output is not scaled.
    """
    return bool(getattr(config, "tie_word_embeddings", False)) and not getattr(config, "is_encoder_decoder", False)


def untie_config_(config: PretrainedConfig, name: str, *, said: bool = True) -> None:
    """Set ``tie_word_embeddings=False`` in a config; with ``said``, log a warning."""
    config.tie_word_embeddings = False
    if said:
        logger.warning(
            "warning: The head of %s differs from its embedding, but its config ties them. Both are kept, and the "
            "config gets tie_word_embeddings=False.",
            name,
        )


@torch.no_grad()
def mend_tied_(model: PreTrainedModel, name: str = "the model", *, said: bool = True) -> None:
    """Make a config that ties head and embedding agree with the tensors: tie equal ones, else untie the config.

    Args:
        model: model without an adapter around its head, modified in place.
        name: name of the model, for the warning.
        said: log a warning if the config changes.
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
