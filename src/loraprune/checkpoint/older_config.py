"""Configs that transformers 4 reads, too: keys that transformers 5 renamed are written under both names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.architectures import PREFIX
from loraprune.checkpoint.older_reader import has_own_head
from loraprune.checkpoint.pruned_class import is_stock
from loraprune.checkpoint.reading import MODEL_CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PARTS = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
_PARTS_OF = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Entries of ``rope_parameters`` that are top-level keys in transformers 4."""

_SECOND_THETA = {"gemma3_text": "rope_local_base_freq", "gemma3n_text": "rope_local_base_freq"}
"""Key in transformers 4 for the rotary base of sliding-window layers; the other layers use ``rope_theta``."""

_CLOSED = ("olmo2", "phi3")
"""Families that accept no other keys in ``rope_scaling``, and read ``type`` there."""

_RENAMED = {"qwen3_moe": {"num_local_experts": "num_experts"}}

_SCALED_IF_TIED = ("t5", "mt5")
"""Families that scale their output if the config ties the head to the embedding."""


def with_older_keys(values: Mapping[str, Any], *, own_head: bool = False) -> dict[str, Any]:
    """Return a config's values with the keys of transformers 4.57 added.

    Transformers 5 reads its own keys first, so it loads the same model as before.

    Args:
        values: values of ``config.json``, as transformers 5 writes it; nested configs are extended, too.
        own_head: whether the head is not the embedding's tensor, which a T5 config does not state.
    """
    found = {key: with_older_keys(value) if _is_config(value) else value for key, value in values.items()}
    model_type = str(values.get("model_type", "")).removeprefix(PREFIX)
    older: dict[str, Any] = {}
    if isinstance(values.get("dtype"), str):
        older["torch_dtype"] = values["dtype"]
    if isinstance(values.get("rope_parameters"), dict):
        older |= _older_rope(model_type, values["rope_parameters"])
    older |= {name: values[key] for key, name in _RENAMED.get(model_type, {}).items() if key in values}
    if own_head and model_type in _SCALED_IF_TIED and not values.get("scale_decoder_outputs"):
        older["tie_word_embeddings"] = False
    return {**found, **older}


def _is_config(value: object) -> bool:
    return isinstance(value, dict) and "model_type" in value


def _older_rope(model_type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    nested = parameters.get("full_attention")
    if isinstance(nested, dict):
        older = _older_rope(model_type, nested)
        second = (parameters.get("sliding_attention") or {}).get("rope_theta")
        return older | ({_SECOND_THETA[model_type]: second} if model_type in _SECOND_THETA else {})
    names = _PARTS_OF.get(model_type, _PARTS)
    older = {name: parameters[key] for key, name in names.items() if key in parameters}
    scaling = {key: value for key, value in parameters.items() if key not in (*_PARTS, "type")}
    if model_type in _CLOSED:
        scaling["type"] = scaling.pop("rope_type", "default")
        scaling.pop("original_max_position_embeddings", None)  # Phi-3's config has it outside
    if set(scaling.values() if len(scaling) == 1 else ()) != {"default"}:
        older["rope_scaling"] = scaling
    return older


def mend_config(folder: Path, model: PreTrainedModel) -> None:
    """Make the config of a saved checkpoint readable by transformers 4. A stock class also loses its ``auto_map``.

    Args:
        folder: folder that ``save_pretrained`` wrote.
        model: model that was saved there.
    """
    file = folder / MODEL_CONFIG
    values = with_older_keys(json.loads(file.read_text(encoding="utf-8")), own_head=has_own_head(model))
    if is_stock(model):
        values.pop("auto_map", None)
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
