"""Numbers formatted for people: ``5.48 M``, ``10.9 MB``, ``12.3 ms``, ``+3.1 %``.

Every function accepts values that are not finite numbers, so callers need no check. None (not measured) becomes a dash.
NaN becomes ``NaN``, and infinity becomes an infinity sign.
"""

from __future__ import annotations

import math

MISSING = "\N{EN DASH}"
MULTIPLICATION_SIGN = "\N{MULTIPLICATION SIGN}"
_MINUS = "\N{MINUS SIGN}"


def is_number(value: float | None) -> bool:
    """Tell whether ``value`` is a finite number: not None, NaN or infinite."""
    return value is not None and math.isfinite(value)


def no_number(value: float | None) -> str:
    """Return the text for None, NaN or an infinite number."""
    if value is None:
        return MISSING
    return "NaN" if math.isnan(value) else f"{_MINUS if value < 0 else ''}\N{INFINITY}"


def or_nan(value: float | None) -> float:
    """Return the value if it is a finite number, else NaN, which plots leave out."""
    return value if value is not None and math.isfinite(value) else math.nan


def significant(value: float | None, digits: int = 3) -> str:
    """Format with ``digits`` significant digits; longer integers keep all digits: ``4.09``, ``12.0``, ``14,813``."""
    if value is None or not math.isfinite(value):
        return no_number(value)
    if value == 0:
        return "0"
    rounded = _round(value, digits)
    exponent = math.floor(math.log10(abs(rounded)))
    if not -4 <= exponent < 6:
        mantissa = f"{rounded / 10.0**exponent:.{digits - 1}f}"
        return _with_minus(f"{mantissa}e{exponent}")
    decimals = digits - 1 - exponent
    return _with_minus(f"{rounded:.{decimals}f}" if decimals >= 0 else f"{value:,.0f}")


def count(value: float | None) -> str:
    """Format a count: ``704``, ``1,408``, ``12.5 k``, ``5.48 M``, ``6.74 B``."""
    if value is not None and math.isfinite(value) and abs(value) < 10_000:
        return _with_minus(f"{value:,.0f}")
    return _scaled(value, ("", " k", " M", " B", " T"))


def counted(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 step``, ``1,408 steps``; the plural of ``noun`` must end in an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short_count(number: float) -> str:
    """Format a count for a progress line: ``704``, ``5.48M``, ``6.74B``."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.0f}"


def file_size(num_bytes: float | None) -> str:
    """Format a size in bytes, in powers of 1000: ``512 B``, ``10.9 MB``."""
    if num_bytes is not None and abs(num_bytes) < 1000:
        return _with_minus(f"{num_bytes:.0f} B")
    return _scaled(num_bytes, (" B", " kB", " MB", " GB", " TB"))


def milliseconds(value: float | None) -> str:
    """Format a short time in milliseconds: ``12.3 ms``; from ten seconds on: ``12.3 s``."""
    if value is None or not math.isfinite(value):
        return no_number(value)
    return f"{significant(value)} ms" if abs(value) < 10_000 else f"{significant(value / 1000)} s"


def duration(seconds: float | None) -> str:
    """Format a duration in seconds: ``0.25 s``, ``1.3 s``, ``45 s``, ``2 min 13 s``, ``3 h 05 min``."""
    if seconds is None or not math.isfinite(seconds):
        return no_number(seconds)
    whole = round(seconds)
    if whole < 60:
        return f"{significant(seconds, 2)} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """Format a duration like a clock: ``75.4`` as ``1:15``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def percent(fraction: float | None, signed: bool = False) -> str:
    """Format a fraction as a percentage: ``50.0 %``; with ``signed``, also a plus sign: ``+3.1 %``."""
    if fraction is None or not math.isfinite(fraction):
        return no_number(fraction)
    value = 100 * fraction
    decimals = 2 if abs(value) < 0.095 else 1 if abs(value) < 1000 else 0
    digits = f"{abs(value):,.{decimals}f}"
    if float(digits.replace(",", "")) == 0:
        return "0.0 %"
    sign = _MINUS if value < 0 else "+" if signed else ""
    return f"{sign}{digits} %"


def times(factor: float | None) -> str:
    """Format a factor: 1.61 followed by a multiplication sign."""
    return f"{significant(factor)}{MULTIPLICATION_SIGN}" if is_number(factor) else no_number(factor)


def _scaled(value: float | None, suffixes: tuple[str, ...]) -> str:
    if value is None or not math.isfinite(value):
        return no_number(value)
    rounded = _round(value, 3)
    power = 0
    while abs(rounded) >= 1000 and power < len(suffixes) - 1:
        rounded /= 1000
        power += 1
    return significant(rounded) + suffixes[power]


def _round(value: float, digits: int) -> float:
    """Round to significant digits first, so 9.999 becomes ``10.0`` and not ``10.00``."""
    return float(f"{value:.{digits - 1}e}")


def _with_minus(digits: str) -> str:
    return digits.replace("-", _MINUS)
