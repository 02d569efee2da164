"""Sizes in bytes as users write them: ``500MB``, ``1.5GiB``, or a number."""

from __future__ import annotations

import math
import re

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def byte_count(name: str, value: str | float) -> int:
    """Read a size in bytes.

    Raises:
        ValueError: ``value`` is not a size; the message names the option.
    """
    found = value if isinstance(value, (int, float)) and not isinstance(value, bool) else _read(str(value))
    if found is None or not math.isfinite(found) or found < 1:
        raise ValueError(f"{name} is {value!r}; it must be a size such as 500MB, 1.5GiB or a number of bytes.")
    return int(found)


def share_or_bytes(name: str, value: str | float) -> float | int:
    """Read a share below 1, or a size in bytes.

    Raises:
        ValueError: ``value`` is neither; the message names the option.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if 0.0 < number < 1.0:
        return number
    try:
        return byte_count(name, value)
    except ValueError:
        raise ValueError(
            f"{name} is {value!r}; it must be a share of what the dense model needs, such as 0.5, or a size such as "
            "64MB."
        ) from None


def _read(text: str) -> float | None:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit, binary = match.groups()
    if binary and not unit:
        return None
    return float(number) * (1024 if binary else 1000) ** _UNITS[unit.upper()]
