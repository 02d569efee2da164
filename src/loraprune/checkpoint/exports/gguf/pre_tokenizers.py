"""llama.cpp's pre-tokenizers for byte-level merges. A GGUF file can only name one of them.

The patterns are those of the tokenizers after which llama.cpp named them, in the format of the tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Step = Mapping[str, Any]
"""One step of a pre-tokenizer in the format of ``tokenizer.json``, without settings that do not change the tokens."""


def _split(pattern: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

_BYTES = _byte_level(use_regex=False)
_WORDS_THEN_BYTES = _byte_level(use_regex=True)
_SINGLE_DIGITS: Step = {"type": "Digits", "individual_digits": True}
_UP_TO_THREE_DIGITS = _split(rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}")


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One of llama.cpp's pre-tokenizers.

    Attributes:
        name: its name in llama.cpp.
        steps: its steps.
        ignore_merges: whether a piece that is a token becomes that token, whatever the merges.
    """

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False


KNOWN = (
    PreTokenizer(name="gpt-2", steps=(_WORDS_THEN_BYTES,)),
    PreTokenizer(name="smollm", steps=(_SINGLE_DIGITS, _WORDS_THEN_BYTES)),
    PreTokenizer(name="llama-bpe", steps=(_UP_TO_THREE_DIGITS, _BYTES), ignore_merges=True),
    PreTokenizer(name="smaug-bpe", steps=(_UP_TO_THREE_DIGITS, _BYTES)),
    PreTokenizer(name="qwen2", steps=(_split(rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}"), _BYTES)),
    PreTokenizer(
        name="deepseek-coder",
        steps=(
            _split("[\r\n]"),
            _split(r"\s?\p{L}+"),
            _split(r"\s?\p{P}+"),
            _split("[一-龥ࠀ-一가-퟿]+"),
            _SINGLE_DIGITS,
            _BYTES,
        ),
    ),
    # Splits at numbers only, so it is the closest one for custom patterns: their tokens stay within their pieces.
    PreTokenizer(name="superbpe", steps=(_split(r"\p{N}+"), _split(r"(?=(\d{3})+(?!\d))"), _BYTES)),
)

SAMPLE = (
    "Once upon a time, there was a little girl named Lily.",
    'She said, "Look! The dog\'s ball is under the old tree."',
    "They didn't know that it's late; we'll go home now.",
    "In 1984 and 2024, about 12.5% of 3,456,789 people agreed.",
    "First line.\nSecond line.\n\nA new paragraph, after a gap.",
    "    indented four\n\tand a tab,  two spaces  between words",
    "def add(a, b):\n    return a + b  # x_1 == y_2",
    "for item in items:\n    if item is None:\n        continue\n    total += item.size\n\nprint(total)\n",
    'class Reader:\n    """Reads."""\n\n    def __init__(self, path):\n        self.path = path\n',
    "https://example.org/path?query=1&other=two#part",
    "El niño comió piñas; Zoë's naïve café, über alles…",
    "Привет, мир! Как дела?",
    "数学很有趣。今天天气很好!",
    "Emoji 🙂🙃 and symbols: € £ ± × ÷ → ∑",
)
"""Texts for comparing pre-tokenizers whose definitions differ."""


def _steps_of(description: Step | None) -> tuple[Step, ...]:
    """Return the steps of the ``pre_tokenizer`` in a ``tokenizer.json``."""
    if description is None:
        return ()
    kind = description["type"]
    if kind == "Sequence":
        return tuple(step for part in description["pretokenizers"] for step in _steps_of(part))
    if kind == "ByteLevel":
        return ({"use_regex": True, **description, "trim_offsets": True},)
    # Isolating the matches and removing what is between them are the same if the pattern matches all text.
    if kind == "Split" and (description["behavior"], description["invert"]) in (("Isolated", False), ("Removed", True)):
        (pattern,) = description["pattern"].values()
        return (_split(pattern),)
    return (description,)


def is_byte_level(description: Mapping[str, Any]) -> bool:
    """Whether a tokenizer (the content of ``tokenizer.json``) is byte-level."""
    return any(step["type"] == "ByteLevel" for step in _steps_of(description["pre_tokenizer"]))


def pre_tokenizer_for(backend: Tokenizer, description: Mapping[str, Any], chosen: str | None) -> str:
    """Return the name of the pre-tokenizer that splits text as a byte-level tokenizer does.

    Args:
        backend: the tokenizer.
        description: content of its ``tokenizer.json``.
        chosen: name that the user chose; that pre-tokenizer may split text differently.

    Raises:
        RuntimeFormatError: no pre-tokenizer is equal and none was chosen, or the chosen one is unknown.
    """
    names = [known.name for known in KNOWN]
    if chosen is not None:
        if chosen not in names:
            raise RuntimeFormatError(f"There is no pre-tokenizer {chosen!r}; choose one of {', '.join(names)}.")
        return chosen
    steps = _steps_of(description["pre_tokenizer"])
    ignore_merges = bool(description["model"].get("ignore_merges", False))
    for known in KNOWN:
        if (known.steps, known.ignore_merges) == (steps, ignore_merges):
            return known.name
    closest = max(KNOWN, key=lambda known: agreement(backend, known))
    raise RuntimeFormatError(
        "llama.cpp has no pre-tokenizer that splits text as this tokenizer does. The closest is "
        f"{closest.name}, which gives the same tokens for {agreement(backend, closest)} of {len(SAMPLE)} sample "
        f"texts. Pass --pre-tokenizer {closest.name} to use it."
    )


def agreement(backend: Tokenizer, known: PreTokenizer) -> int:
    """Return the number of sample texts for which a pre-tokenizer gives the same tokens."""
    from tokenizers import Tokenizer

    steps = {"type": "Sequence", "pretokenizers": known.steps}
    other = Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), "pre_tokenizer": steps}))
    return sum(
        backend.encode(text, add_special_tokens=False).ids == other.encode(text, add_special_tokens=False).ids
        for text in SAMPLE
    )
