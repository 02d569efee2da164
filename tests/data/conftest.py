"""A small byte-level tokenizer, made on the spot, and the real data where a checkout has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SHARED_DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


def _make_tokenizer(
    *, bos: bool = False, eos: bool = True, adds_bos: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """One token a byte, but for `` a`` and ``:a``, which span a boundary that a test may put between their parts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: i for i, token in enumerate([*alphabet, "Ġa", ":a", "<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "a"), (":", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos or adds_bos else None,
        eos_token="</s>" if eos else None,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    return _make_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return _make_tokenizer()


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data")
    return SHARED_DATA
