"""The metadata at the top of a model card, which the hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loraprune.record.history import stored_file

if TYPE_CHECKING:
    from loraprune.record.run_record import RunRecord

_PIPELINES = {
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
    "text-classification": "text-classification",
}
"""What the hub calls our tasks; of encoder-decoder models, the base's card alone can say it."""

_FENCE = "---\n"


def card_metadata(
    record: RunRecord, tags: Sequence[str], *, data: str | None = None, revision: str | None = None
) -> str:
    """The metadata block of a run's card, in YAML between two fences.

    The license is that of the base's card, where there is one. A base that is no model of the hub, but was made from
    one, hands that one on.

    Args:
        record: of the run.
        tags: beside those of the package.
        data: name of a data set on the hub that the run read.
        revision: of the base on the hub.
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
    """Whether a name has the form of one of the hub, ``owner/name``, and nothing here goes by it."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def metadata_of(name: str, revision: str | None = None) -> Mapping[str, Any]:
    """What the card of a checkpoint says to the hub; nothing where there is no card, or none that can be read.

    Args:
        name: a folder, or a name on the hub.
        revision: of a hub checkpoint.
    """
    card = stored_file(name, "README.md", revision)
    try:
        text = "" if card is None else card.read_text(encoding="utf-8")
        front = text.split(_FENCE, 2)[1] if text.startswith(_FENCE) and text.count(_FENCE) > 1 else ""
        found = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _license(base: Mapping[str, Any], source: Any) -> Mapping[str, Any]:
    """License of the base; a link to a file of its repository leads there."""
    found = {name: base.get(name) for name in ("license", "license_name", "license_link")}
    link = found["license_link"]
    if isinstance(link, str) and "://" not in link:
        found["license_link"] = f"https://huggingface.co/{source}/blob/main/{link}" if isinstance(source, str) else None
    return found
