"""Sanitizing of untrusted text for the terminal: names, files, messages, generated text.

A terminal obeys control characters, and characters that change the writing direction can make a text look like
another. Both are replaced by the replacement character, and so are unpaired surrogates, which cannot be printed.
"""

from __future__ import annotations

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_LINE_ENDS = r"\u2028\u2029"
_DIRECTIONS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_SURROGATES = r"\ud800-\udfff"
_UNSAFE = re.compile(f"[{_CONTROLS}{_LINE_ENDS}{_DIRECTIONS}{_SURROGATES}]")
_BREAK = re.compile(rf"\s*[\r\n{_LINE_ENDS}\x85\x0b\x0c]\s*")


def clean(text: str) -> str:
    """Replace the characters that control a terminal; newlines and tabs stay."""
    return _UNSAFE.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """Return the clean text in one line, so that no part of it can look like a separate message."""
    return clean(_BREAK.sub(" ", text.rstrip()))
