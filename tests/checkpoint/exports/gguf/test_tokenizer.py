from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint.exports.tokenizers import byte_level, named, sentencepiece
from tests.models import tiny_config
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.tokenizer import add_tokenizer, tokenizer_of_folder

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
TokenType = gguf.TokenType


def translate(
    tokenizer: PreTrainedTokenizerBase, size: int | None = None, **changes: Any
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a file says of a tokenizer, by the ends of the keys; and the notes."""
    config = tiny_config(vocab_size=size or len(tokenizer))
    for name, value in changes.items():
        setattr(config, name, value)
    writer = gguf.GGUFWriter(None, "llama")
    *_, notes = add_tokenizer(writer, tokenizer, config)
    return {key.rpartition(".")[2]: field.value for key, field in writer.kv_data[0].items()}, notes


def special_ids(found: dict[str, Any]) -> dict[str, int]:
    return {key.removesuffix("_token_id"): value for key, value in found.items() if key.endswith("_token_id")}


def of_type(found: dict[str, Any], *types: int) -> list[str]:
    return [token for token, kind in zip(found["tokens"], found["token_type"], strict=True) if kind in types]


def changed(tokenizer: PreTrainedTokenizerBase, **values: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with other values in its ``tokenizer.json``; ``model__x`` is ``x`` of the model."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    for name, value in values.items():
        where, _, leaf = name.rpartition("__")
        (description[where] if where else description)[leaf] = value
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_tokens_stand_at_their_ids_and_unused_rows_have_names(make: Any) -> None:
    tokenizer = make()
    found, _ = translate(tokenizer, len(tokenizer) + 2)
    size = len(tokenizer)
    assert found["tokens"][:size] == tokenizer.convert_ids_to_tokens(list(range(size)))
    assert found["tokens"][size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert found["token_type"][size:] == [TokenType.UNUSED, TokenType.UNUSED]


def test_special_added_and_byte_tokens_have_their_types() -> None:
    found, _ = translate(byte_level())
    assert of_type(found, TokenType.CONTROL) == ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    assert of_type(found, TokenType.USER_DEFINED) == ["<tool>"]
    assert of_type(found, TokenType.BYTE, TokenType.UNKNOWN) == []
    found, _ = translate(sentencepiece())
    assert of_type(found, TokenType.CONTROL) == ["<s>", "</s>"]
    assert of_type(found, TokenType.UNKNOWN) == ["<unk>"]
    assert of_type(found, TokenType.BYTE) == [f"<0x{byte:02X}>" for byte in range(256)]


def test_byte_level_merges_keep_their_order() -> None:
    tokenizer = named("qwen2")
    found, _ = translate(tokenizer)
    assert (found["model"], found["pre"], "scores" in found) == ("gpt2", "qwen2", False)
    expected = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    assert [merge.split(" ") for merge in found["merges"]] == expected


def test_sentencepiece_scores_fall_in_the_order_of_the_merges() -> None:
    tokenizer = sentencepiece()
    found, notes = translate(tokenizer)
    assert (found["model"], "merges" in found, notes) == ("llama", False, ())
    merged = ["".join(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    scores = dict(zip(found["tokens"], found["scores"], strict=True))
    order = list(dict.fromkeys(merged))
    assert [scores[token] for token in order] == sorted((scores[token] for token in order), reverse=True)
    assert all(scores[token] < scores[order[-1]] for token in scores if token not in order)


def test_what_is_added_to_a_text_is_found_out() -> None:
    framed, _ = translate(byte_level(frame=True))
    assert (framed["add_bos_token"], framed["add_eos_token"]) == (True, True)
    assert special_ids(framed) == {"bos": 0, "eos": 1}
    bare, _ = translate(byte_level())
    assert (bare["add_bos_token"], bare["add_eos_token"]) == (False, False)
    front, _ = translate(sentencepiece())
    assert [front[f"add_{name}"] for name in ("bos_token", "eos_token", "space_prefix")] == [True, False, True]
    assert special_ids(front) == {"unknown": 0, "bos": 1, "eos": 2}


def test_special_ids_that_the_tokenizer_does_not_name_come_from_the_config() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    found, _ = translate(tokenizer, bos_token_id=3, eos_token_id=[1, 2], pad_token_id=100000)
    assert special_ids(found) == {"bos": 3, "eos": 1}


def test_the_chat_template_comes_along() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages }}"
    assert translate(tokenizer)[0]["chat_template"] == "{{ messages }}"
    assert "chat_template" not in translate(byte_level())[0]


@pytest.mark.parametrize(
    ("tokenizer", "note"),
    [
        (lambda: sentencepiece(byte_tokens=False), "ends the program at a character"),
        (lambda: sentencepiece(complete=False), "pairs of tokens make a token but are not among the merges"),
        (lambda: sentencepiece(metaspace=True), "a space before every text"),
        (lambda: byte_level(normalizer=normalizers.NFC()), "does not compose accents"),
    ],
)
def test_where_llama_cpp_may_differ_is_said(tokenizer: Any, note: str) -> None:
    _, (found,) = translate(tokenizer())
    assert note in found


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: byte_level(normalizer=normalizers.Lowercase()), r"this tokenizer does \(Lowercase\)"),
        (lambda: changed(byte_level(), model__merges=[]), "byte-level tokenizer has no merges"),
        (lambda: changed(byte_level(), model__dropout=0.1), "has dropout, which llama.cpp does not support"),
        (lambda: changed(sentencepiece(), normalizer={"type": "NFKC"}), "normalizes and splits text as this one does"),
        (lambda: changed(sentencepiece(), pre_tokenizer={"type": "Whitespace"}), "normalizes and splits text"),
        (
            lambda: PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", -1.0)], 0))),
            "cannot write a tokenizer of type Unigram",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(tokenizer: Any, message: str) -> None:
    with pytest.raises(RuntimeFormatError, match=message):
        translate(tokenizer())


def test_words_cut_at_spaces_are_refused_where_tokens_reach_over_them() -> None:
    tokenizer = sentencepiece(metaspace=True)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    translate(tokenizer)
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    with pytest.raises(RuntimeFormatError, match="normalizes and splits text"):
        translate(changed(tokenizer, model__vocab={**vocabulary, "a▁b": len(vocabulary)}))


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused() -> None:
    tokenizer = byte_level()
    size = len(tokenizer)
    with pytest.raises(
        RuntimeFormatError, match=f"ids up to {size - 1}, but the model's embedding has {size - 1} rows"
    ):
        translate(tokenizer, size - 1)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFormatError, match=r"has no tokenizer\.json. Save one there first"):
        tokenizer_of_folder(tmp_path)
