"""Parameters of tests of which the default run takes the first few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(values: Iterable[Any], keep: int = 1) -> list[Any]:
    """All parameters; those behind the first ``keep`` are for the full run (``--full``) only."""
    found: list[Any] = []
    for number, value in enumerate(values):
        if number < keep:
            found.append(value)
        elif hasattr(value, "marks"):
            found.append(pytest.param(*value.values, marks=[*value.marks, pytest.mark.full], id=value.id))
        else:
            found.append(pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full))
    return found
