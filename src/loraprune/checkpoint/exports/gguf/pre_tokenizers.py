"""llama.cpp's ways to cut text before byte-level merges, which it knows by name only.

The patterns are those of the tokenizers that llama.cpp took its names from, in the words of the tokenizers library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Step = tuple[str | bool, ...]
"""One step in which text is cut, without what makes no difference to the tokens."""

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"

_BYTES: Step = ("ByteLevel", False, False)
_WORDS_THEN_BYTES: Step = ("ByteLevel", False, True)
_UP_TO_THREE_DIGITS: Step = ("Split", rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}")


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One of llama.cpp's.

    Attributes:
        name: what llama.cpp calls it.
        steps: in which text is cut.
        ignore_merges: a piece that is a token as a whole is taken without looking at the merges.
    """

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False


KNOWN = (
    PreTokenizer(name="gpt-2", steps=(_WORDS_THEN_BYTES,)),
    PreTokenizer(name="smollm", steps=(("Digits", True), _WORDS_THEN_BYTES)),
    PreTokenizer(name="llama-bpe", steps=(_UP_TO_THREE_DIGITS, _BYTES), ignore_merges=True),
    PreTokenizer(name="smaug-bpe", steps=(_UP_TO_THREE_DIGITS, _BYTES)),
    PreTokenizer(name="qwen2", steps=(("Split", rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}"), _BYTES)),
    PreTokenizer(
        name="deepseek-coder",
        steps=(
            ("Split", "[\r\n]"),
            ("Split", r"\s?\p{L}+"),
            ("Split", r"\s?\p{P}+"),
            ("Split", "[一-龥ࠀ-一가-퟿]+"),
            ("Digits", True),
            _BYTES,
        ),
    ),
    # Cuts at numbers only: the closest one for patterns of one's own, whose tokens keep within their pieces anyway.
    PreTokenizer(name="superbpe", steps=(("Split", r"\p{N}+"), ("Split", r"(?=(\d{3})+(?!\d))"), _BYTES)),
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
"""Texts on which pre-tokenizers are compared that are not equal by their definition."""


def steps_of(description: Mapping[str, Any] | None) -> tuple[Step, ...]:
    """The steps of a pre-tokenizer of the tokenizers library.

    Args:
        description: as ``tokenizer.json`` has it under ``pre_tokenizer``.
    """
    if description is None:
        return ()
    kind = description["type"]
    if kind == "Sequence":
        return tuple(step for part in description["pretokenizers"] for step in steps_of(part))
    if kind == "ByteLevel":
        return (("ByteLevel", description["add_prefix_space"], description.get("use_regex", True)),)
    if kind == "Digits":
        return (("Digits", description["individual_digits"]),)
    if kind == "Split":
        (pattern,) = description["pattern"].values()
        # To cut out what matches, or to drop what is between the matches, is the same where all text matches.
        cut = (description["behavior"], description["invert"]) in (("Isolated", False), ("Removed", True))
        return (("Split", pattern) if cut else ("Split", pattern, description["behavior"], description["invert"]),)
    return ((kind,),)


def pre_tokenizer_for(backend: Tokenizer, description: Mapping[str, Any], chosen: str | None) -> str:
    """The name of the pre-tokenizer that cuts text as a byte-level tokenizer does.

    Args:
        backend: the tokenizer.
        description: the content of its ``tokenizer.json``.
        chosen: name that the user chose; it need not be equal.

    Raises:
        RuntimeFormatError: there is no equal one and none was chosen, or the chosen one is unknown.
    """
    names = [known.name for known in KNOWN]
    if chosen is not None:
        if chosen not in names:
            raise RuntimeFormatError(f"There is no pre-tokenizer {chosen!r}; choose one of {', '.join(names)}.")
        return chosen
    steps = steps_of(description["pre_tokenizer"])
    ignore_merges = bool(description["model"].get("ignore_merges", False))
    for known in KNOWN:
        if (known.steps, known.ignore_merges) == (steps, ignore_merges):
            return known.name
    closest = max(KNOWN, key=lambda known: agreement(backend, known))
    raise RuntimeFormatError(
        "llama.cpp has no pre-tokenizer that cuts text as this tokenizer does. The closest is "
        f"{closest.name}, which gives the same tokens for {agreement(backend, closest)} of {len(SAMPLE)} sample "
        f"texts: pass --pre-tokenizer {closest.name} to write the file with it."
    )


def agreement(backend: Tokenizer, known: PreTokenizer) -> int:
    """For how many of the sample texts a pre-tokenizer leads to the same tokens."""
    from tokenizers import Tokenizer

    other = Tokenizer.from_str(backend.to_str())
    other.pre_tokenizer = _build(known.steps)
    return sum(
        backend.encode(text, add_special_tokens=False).ids == other.encode(text, add_special_tokens=False).ids
        for text in SAMPLE
    )


def _build(steps: tuple[Step, ...]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    def build(kind: str | bool, *rest: Any) -> Any:
        if kind == "ByteLevel":
            prefix, regex = rest
            return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
        if kind == "Digits":
            return pre_tokenizers.Digits(individual_digits=rest[0])
        return pre_tokenizers.Split(Regex(rest[0]), behavior="isolated")

    return pre_tokenizers.Sequence([build(*step) for step in steps])
