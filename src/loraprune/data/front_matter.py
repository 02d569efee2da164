"""YAML at the top of a card, the README of a model or dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_FRONT = re.compile(r"---[^\S\n]*\n(.*?)^---[^\S\n]*$", re.DOTALL | re.MULTILINE)


def front_matter(card: Path) -> Mapping[str, Any]:
    """Return the values between the two lines of dashes at the top of a card; empty if there are none to read."""
    try:
        front = _FRONT.match(card.read_text(encoding="utf-8", errors="replace"))
        values = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
