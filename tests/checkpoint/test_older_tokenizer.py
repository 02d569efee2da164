"""A saved tokenizer is described in words that transformers 4 and 5 both read, and gives the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint.exports.tokenizers import byte_level, sentencepiece
from tests.models import tiny_model
from transformers import AutoTokenizer

from loraprune.checkpoint.save import save_checkpoint

TEXT = "She didn't know <|im_start|> that"


def base_tokenizer(folder: Path, kind: str, **changes: Any) -> Any:
    """The tokenizer of a base checkpoint whose config says something else of it."""
    (byte_level(frame=True) if kind == "bytes" else sentencepiece()).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


CASES = [
    pytest.param("bytes", {"tokenizer_class": "PreTrainedTokenizerFast"}, "PreTrainedTokenizerFast", id="plain"),
    pytest.param("bytes", {"tokenizer_class": "Qwen2TokenizerFast"}, "Qwen2Tokenizer", id="qwen2"),
    pytest.param("bytes", {"tokenizer_class": "GPTNeoXTokenizer"}, "GPTNeoXTokenizer", id="gpt-neox"),
    pytest.param("bytes", {"tokenizer_class": "LlamaTokenizerFast"}, "PreTrainedTokenizerFast", id="llama-of-bytes"),
    pytest.param("sp", {"tokenizer_class": "LlamaTokenizer"}, "LlamaTokenizer", id="llama"),
    pytest.param("bytes", {"tokenizer_class": "CohereTokenizer"}, "PreTrainedTokenizerFast", id="cohere-with-end"),
]
"""Kind, what the base's config says, and the class that is saved."""


@pytest.mark.parametrize(("kind", "changes", "saved"), CASES)
def test_the_class_is_one_that_both_know_and_the_tokens_are_the_same(
    tmp_path: Path, kind: str, changes: dict[str, Any], saved: str
) -> None:
    tokenizer = base_tokenizer(tmp_path / "base", kind, **changes)
    save_checkpoint(tmp_path / "out", tiny_model("llama"), tokenizer, card="", record={})
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["tokenizer_class"] == saved
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again(TEXT) == tokenizer(TEXT)
    assert again.padding_side == tokenizer.padding_side


def test_special_tokens_are_listed_as_both_read_them(tmp_path: Path) -> None:
    tokenizer = base_tokenizer(tmp_path / "base", "bytes", additional_special_tokens=["<|im_start|>"])
    save_checkpoint(tmp_path / "out", tiny_model("llama"), tokenizer, card="", record={})
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert values["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in values
    assert AutoTokenizer.from_pretrained(tmp_path / "out").extra_special_tokens == ["<|im_start|>"]


def test_named_special_tokens_are_named_as_both_read_them(tmp_path: Path) -> None:
    tokenizer = base_tokenizer(tmp_path / "base", "bytes", extra_special_tokens={"image_token": "<|im_start|>"})
    save_checkpoint(tmp_path / "out", tiny_model("llama"), tokenizer, card="", record={})
    values = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert values["extra_special_tokens"] == {"image_token": "<|im_start|>"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").image_token == "<|im_start|>"


def test_the_file_of_sentencepiece_comes_along_and_stale_code_does_not(tmp_path: Path) -> None:
    stale = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    tokenizer = base_tokenizer(tmp_path / "base", "sp", auto_map=stale)
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"pieces")
    save_checkpoint(tmp_path / "out", tiny_model("llama"), tokenizer, card="", record={})
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
