"""Metadata at the top of a model card, which the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loraprune.data.front_matter import front_matter
from loraprune.record.history import stored_file

if TYPE_CHECKING:
    from loraprune.record.run_record import RunRecord

_PIPELINES = {
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
    "text-classification": "text-classification",
}
"""Hub names of our tasks. For encoder-decoder models, only the base's card has the task."""

_FENCE = "---\n"


def card_metadata(
    record: RunRecord, tags: Sequence[str], *, data: str | None = None, revision: str | None = None
) -> str:
    """Return the metadata block of a run's card, in YAML between two fences.

    The license comes from the base's card, if there is one. If the base is not on the Hub but was made from a Hub
    model, that model is named as the base.

    Args:
        record: record of the run.
        tags: tags in addition to the package's.
        data: name of a Hub dataset that the run read.
        revision: revision of the base on the Hub.
    """
    base = metadata_of(record.base_model, revision)
    source = record.base_model if is_hub_model(record.base_model) else base.get("base_model")
    found = {
        "library_name": "transformers",
        "pipeline_tag": _PIPELINES.get(record.task or "", base.get("pipeline_tag")),
        "base_model": source,
        "base_model_relation": "finetune" if source else None,
        **_license(base, source),
        "datasets": [data] if data else None,
        "tags": ["loraprune", *tags],
    }
    known = {name: value for name, value in found.items() if value}
    return _FENCE + yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + _FENCE


def is_hub_model(name: str) -> bool:
    """Whether a name has the form of a Hub name, ``owner/name``, and no local path has it."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def metadata_of(name: str, revision: str | None = None) -> Mapping[str, Any]:
    """Return the metadata of a checkpoint's card; empty if there is no card or it cannot be read.

    Args:
        name: a folder, or a name on the Hub.
        revision: revision of a Hub checkpoint.
    """
    card = stored_file(name, "README.md", revision)
    return {} if card is None else front_matter(card)


def _license(base: Mapping[str, Any], source: Any) -> Mapping[str, Any]:
    """License of the base. A link to a file in its repository becomes a full link to that repository."""
    found = {name: base.get(name) for name in ("license", "license_name", "license_link")}
    link = found["license_link"]
    if isinstance(link, str) and "://" not in link:
        found["license_link"] = f"https://huggingface.co/{source}/blob/main/{link}" if isinstance(source, str) else None
    return found
