"""What a tokenizer adds to a text by itself, and what a sequence begins with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.checkpoints import BOS, EOS, tiny_tokenizer
from tests.data.conftest import MakeTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loraprune.data.encoding import added_ids, encode_prompt, opened, opening_ids

IM_START = 258


def metaspace(single: str) -> PreTrainedTokenizerBase:
    """Like sentencepiece's: a space before the first word is part of its token."""
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", "▁", "a", "b", "▁a", "▁b"])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "before", "behind"),
    [
        (tiny_tokenizer, [], []),
        (lambda: tiny_tokenizer(adds="<s> $A"), [BOS], []),
        (lambda: tiny_tokenizer(adds="$A </s>"), [], [EOS]),
        (lambda: tiny_tokenizer(adds="<s> $A </s>"), [BOS], [EOS]),
        (lambda: tiny_tokenizer(adds="<|im_start|> <s> $A </s> </s>"), [IM_START, BOS], [EOS, EOS]),
        (lambda: metaspace("<s> $A </s>"), [0], [1]),
        (lambda: metaspace("$A </s>"), [], [1]),
        (ByT5Tokenizer, [], [1]),
    ],
)
def test_what_is_added_is_known_and_a_prompt_has_only_what_is_before(
    make: Callable[[], PreTrainedTokenizerBase], before: list[int], behind: list[int]
) -> None:
    tokenizer = make()
    assert added_ids(tokenizer) == (before, behind)
    for text in ("a", "a b", " b", ""):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert before + bare + behind == tokenizer(text)["input_ids"]
        assert encode_prompt(tokenizer, text) == before + bare


def test_a_text_without_tokens_has_what_its_tokenizer_adds() -> None:
    backend = Tokenizer(models.BPE(vocab={"<s>": 0, "x": 1}, merges=[]))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    assert added_ids(tokenizer) == ([0], [])


@pytest.mark.parametrize(
    ("adds", "auto", "always"),
    [
        ("$A", [], [BOS]),
        ("$A </s>", [], [BOS]),
        ("<s> $A </s>", [BOS], [BOS]),
        ("<|im_start|> $A", [IM_START], [BOS, IM_START]),
        ("<|im_start|> <s> $A", [IM_START, BOS], [IM_START, BOS]),
    ],
)
def test_a_sequence_begins_as_the_tokenizer_does_always_or_never(adds: str, auto: list[int], always: list[int]) -> None:
    tokenizer = tiny_tokenizer(adds=adds)
    assert opening_ids(tokenizer) == opening_ids(tokenizer, "auto") == auto
    assert opening_ids(tokenizer, "always") == always
    assert opening_ids(tokenizer, "never") == []


def test_what_cannot_be_is_refused(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match="--bos is always, but the tokenizer has no beginning-of-sequence token"):
        opening_ids(make_tokenizer(), "always")
    with pytest.raises(ValueError, match="bos is 'yes'; choose one of auto, always, never"):
        opening_ids(make_tokenizer(), "yes")


def test_nothing_is_opened_twice() -> None:
    assert opened([1, 2], [3]) == opened([1, 2], [1, 2, 3]) == [1, 2, 3]
    assert opened([], [3]) == [3]
    assert encode_prompt(tiny_tokenizer(adds="<s> $A"), "<s>a")[:2] != [BOS, BOS]
