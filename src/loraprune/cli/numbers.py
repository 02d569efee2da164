"""Numbers as people type them: ``4.5B`` parameters."""

from __future__ import annotations

import argparse
import re

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


def numbers(text: str) -> tuple[float, ...]:
    """``0.1,0.2`` as a tuple.

    Raises:
        argparse.ArgumentTypeError: a part is no number.
    """
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write it like 0.1,0.2,0.5") from None


def indices(text: str) -> tuple[int | str, ...]:
    """``0,1,-1`` as a tuple; ``4-7`` stands for 4 to 7, and a share such as ``10%`` stays as it is.

    Raises:
        argparse.ArgumentTypeError: a part is none of these.
    """
    found: list[int | str] = []
    for part in names(text):
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if span is not None and int(span[1]) <= int(span[2]):
            found += range(int(span[1]), int(span[2]) + 1)
        elif re.fullmatch(r"-?\d+", part):
            found.append(int(part))
        elif re.fullmatch(r"\d+(\.\d+)?%", part):
            found.append(part)
        else:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of layers; write it like 0,1,-1 or 0-3 or 10%")
    return tuple(found)
