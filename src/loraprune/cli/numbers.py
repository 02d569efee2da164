"""Numbers as people type them: ``4.5B`` parameters."""

from __future__ import annotations

import argparse

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def parameter_count(text: str | int | float) -> int:
    """Read ``4.5B``, ``350M``, ``120k`` or a plain number.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    if isinstance(text, (int, float)):
        return int(text)
    digits, suffix = text.strip().replace("_", "").replace(",", ""), ""
    if digits and digits[-1].upper() in _FACTORS:
        digits, suffix = digits[:-1], digits[-1].upper()
    try:
        return round(float(digits) * _FACTORS[suffix])
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of parameters; write 4.5B, 350M or 120000") from None


def names(text: str) -> tuple[str, ...]:
    """``heads,channels`` as a tuple; spaces do not matter."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty list; name at least one, or leave the option out")
    return found


def indices(text: str) -> tuple[int, ...]:
    """``0,1,-1`` as a tuple.

    Raises:
        argparse.ArgumentTypeError: a part is no whole number.
    """
    try:
        return tuple(int(part) for part in names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; write it like 0,1,-1") from None
