"""Which results transformers 4.57 loads with the same logits, and why not the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraprune.architectures import PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedModel

# fmt: off
IN_4 = frozenset((
    "bert", "bloom", "cohere", "convnext", "deepseek_v2", "deepseek_v3", "deit", "dinov2", "falcon", "gemma",
    "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gptj", "granite", "llama", "ministral", "mistral",
    "mixtral", "mpt", "mt5", "nemotron", "olmo2", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "roberta", "smollm3", "stablelm", "starcoder2", "t5", "vit", "xlm-roberta",
))
# fmt: on
"""Families whose logits the tests compare between both versions."""

_LATER = ("ministral3",)
"""Families that only transformers 5 has."""

_OWN_HEAD_DIM = ("qwen2_moe", "vit", "deit", "dinov2")
"""Families whose classes in 4.57 ignore ``head_dim`` and divide the hidden size by the number of heads."""

_OTHER_MODULES = ("vit", "deit", "dinov2")
"""Families whose modules have other names in 4.57, so the shapes listed in the config do not match."""

_ROPE_TYPES = {"olmo2": ("default", "linear", "dynamic"), "nemotron": ("default", "dynamic")}
_ALL_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def missing_in_4(model: PreTrainedModel) -> str | None:
    """Return why transformers 4.57 does not load a finished model with the same logits; None if it does."""
    return next(_missing(model), None)


def _missing(model: PreTrainedModel) -> Iterator[str]:
    config: Any = model.config
    pruned = getattr(config, "pruned", None)
    family = config.model_type.removeprefix(PREFIX)
    if family not in IN_4:
        yield f"4.57 {'has no' if family in _LATER else 'was not tried with'} {family}"
    elif pruned:
        if family in _OTHER_MODULES:
            yield "modules have other names in 4.57"
        if any(".experts" in name for part in ("shapes", "lists", "numbers") for name in pruned[part]):
            yield "4.57 does not stack experts"
    elif family in _OWN_HEAD_DIM and _cuts_heads(config):
        yield f"the {family} of 4.57 takes no head_dim"
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (value for value in (parameters, *parameters.values()) if isinstance(value, dict)):
        yield from _missing_of_rope(family, rope)
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        yield "4.57 ignores scale_attn_by_inverse_layer_idx in its fast attention"
    if getattr(config, "attn_logit_softcapping", None):
        yield "4.57 ignores attn_logit_softcapping in its fast attention"
    if family in ("t5", "mt5") and not getattr(config, "scale_decoder_outputs", False) and not has_own_head(model):
        yield "4.57 scales the output of a head that is the embedding"


def _cuts_heads(config: Any) -> bool:
    width = getattr(config, "head_dim", None)
    return bool(width) and width * config.num_attention_heads != config.hidden_size


def _missing_of_rope(family: str, rope: Mapping[str, Any]) -> Iterator[str]:
    kind = rope.get("rope_type", "default")
    if kind not in _ROPE_TYPES.get(family, _ALL_ROPE_TYPES):
        yield f"the {family} of 4.57 has no rotary embedding of type {kind}"
    if family == "phi3" and "factor" in rope:
        yield "the phi3 of 4.57 takes no factor for its rotary embedding"


def has_own_head(model: PreTrainedModel) -> bool:
    """Whether the head of an encoder-decoder has its own tensor, not the embedding's."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return False
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is not getattr(embedding, "weight", None)
