"""How long an input of a model may be, as its config says."""

from __future__ import annotations

from typing import Any

_NAMES = ("max_position_embeddings", "max_seq_len")
"""What families call it; MPT has the second."""


def longest_input(config: Any) -> int | None:
    """Tokens that a config allows at most; None where it says nothing."""
    found = (getattr(config, name, None) for name in _NAMES)
    return next((value for value in found if isinstance(value, int)), None)
