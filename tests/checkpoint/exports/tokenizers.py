"""Small trained tokenizers of the kinds that llama.cpp knows."""

from __future__ import annotations

import json
from typing import Any

from tests.checkpoints import sentences
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPACE = "▁"
TEXTS = (
    *sentences(60),
    "She didn't know that it's late, and we'll go home now. They'RE here!",
    "In 1984 and 2024, about 12.5% of 3,456,789 people agreed.",
    "First line.\nSecond line.\n\n  indented, \twith   runs of spaces  ",
    "def add(a, b):\n    return a + b  # x_1 == y_2\n\nfor item in items:\n    if item:\n        add(item, 1234567)",
    "El niño comió piñas; Zoë's naïve café. Привет, мир! 数学很有趣。 🙂 € ÷",
)
"""What the tokenizers are trained on, and what tests encode."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


def _bytes(*, regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


CUTS: dict[str, tuple[list[Any], bool]] = {
    "gpt-2": ([_bytes(regex=True)], False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), _bytes(regex=True)], False),
    "llama-bpe": ([_split(_WORDS + r"\p{N}{1,3}" + _REST), _bytes(regex=False)], True),
    "smaug-bpe": ([_split(_WORDS + r"\p{N}{1,3}" + _REST, "removed", True), _bytes(regex=False)], False),
    "qwen2": ([_split(_WORDS + r"\p{N}" + _REST), _bytes(regex=False)], False),
    "deepseek-coder": (
        [
            *(_split(pattern) for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
            pre_tokenizers.Digits(individual_digits=True),
            _bytes(regex=False),
        ],
        False,
    ),
    "superbpe": ([_split(r"\p{N}+"), _split(r"(?=(\d{3})+(?!\d))"), _bytes(regex=False)], False),
}
"""llama.cpp's names: the steps in which the tokenizers library cuts text that way, and whether merges are ignored."""


def byte_level(
    pre_tokenizer: Any = None, *, ignore_merges: bool = False, frame: bool = False, normalizer: Any = None
) -> PreTrainedTokenizerBase:
    """Byte-level merges of some texts; with ``frame``, text is put between ``<s>`` and ``</s>``."""
    backend = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    # Trained on uncut text, so that tokens reach over all places where text may be cut: cutting makes a difference.
    backend.pre_tokenizer = _bytes(regex=False)
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        max_token_length=20,  # llama-cpp-python shows tokens of up to 32 bytes
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.pre_tokenizer = pre_tokenizer or _bytes(regex=True)
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    if frame:
        backend.post_processor = _framed(backend, "<s> $A </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def named(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that cuts text as llama.cpp does under a name."""
    steps, ignore_merges = CUTS[name]
    return byte_level(pre_tokenizers.Sequence(steps), ignore_merges=ignore_merges)


def sentencepiece(
    *, metaspace: bool = False, complete: bool = True, byte_tokens: bool = True
) -> PreTrainedTokenizerBase:
    """Merges over characters, with a token for every byte, and ``<s>`` in front of a text.

    Args:
        metaspace: spaces become characters when text is cut, not before.
        complete: every way to make a token is among the merges, as in vocabularies that come from SentencePiece.
        byte_tokens: what is unknown falls apart into bytes.
    """
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256) if byte_tokens)]
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_tokens))
    spaces = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    # Merges within words only, as SentencePiece learns them.
    backend.normalizer, backend.pre_tokenizer = spaces, _split(SPACE, "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    backend.train_from_iterator(sentences(60), trainer)
    description = json.loads(backend.to_str())
    description["pre_tokenizer"] = None
    # Only the first three are special: the others are tokens like all others.
    description["added_tokens"] = description["added_tokens"][:3]
    if complete:
        vocabulary = description["model"]["vocab"]
        description["model"]["merges"] = [
            [token[:cut], token[cut:]]
            for token in sorted(vocabulary, key=vocabulary.__getitem__)
            if token not in special
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
    backend = Tokenizer.from_str(json.dumps(description))
    if metaspace:
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = _framed(backend, "<s> $A")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _framed(backend: Tokenizer, template: str) -> Any:
    special = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    return processors.TemplateProcessing(single=template, special_tokens=special)
