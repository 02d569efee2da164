"""What may reach a terminal of texts that come from elsewhere: names, files, messages, what a model has written.

A terminal obeys control characters, and characters that turn the direction of writing make a text look like another.
Both are shown as the replacement character, as are halves of surrogate pairs, which cannot be printed at all.
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
    """The text without what a terminal would obey; newlines and tabs stay."""
    return _UNSAFE.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """The text, clean and in one line, so that no part of it can pass for a message of its own."""
    return clean(_BREAK.sub(" ", text.rstrip()))
