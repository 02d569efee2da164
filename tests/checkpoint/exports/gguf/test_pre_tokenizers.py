from __future__ import annotations

import json

import pytest
from tests.checkpoint.exports.tokenizers import CUTS, byte_level, named
from tokenizers import Regex, pre_tokenizers

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.pre_tokenizers import KNOWN, SAMPLE, agreement, pre_tokenizer_for

WORDS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r" ?[\p{L}_]+|\p{N}| ?[^\s\p{L}\p{N}_]+|\s"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


def name_of(tokenizer: object, chosen: str | None = None) -> str:
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    return pre_tokenizer_for(backend, json.loads(backend.to_str()), chosen)


@pytest.mark.parametrize("name", CUTS)
def test_a_known_way_to_cut_text_is_found_by_its_definition(name: str) -> None:
    assert name_of(named(name)) == name


def test_every_name_is_tried_by_a_tokenizer_of_its_own() -> None:
    assert {known.name for known in KNOWN} == set(CUTS)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_tokenizer_agrees_with_its_own_way_on_all_texts(known: object) -> None:
    assert agreement(named(known.name).backend_tokenizer, known) == len(SAMPLE)  # type: ignore[attr-defined, arg-type]


def test_another_way_leads_to_other_tokens() -> None:
    for known in KNOWN:
        tokenizer = named(known.name).backend_tokenizer
        same = {other.name for other in KNOWN if agreement(tokenizer, other) == len(SAMPLE)}
        # These two cut alike, and only one of them looks at the merges.
        assert same <= ({"llama-bpe", "smaug-bpe"} if known.name in ("llama-bpe", "smaug-bpe") else {known.name})


def test_an_unknown_way_is_refused_with_the_closest_one() -> None:
    tokenizer = byte_level(WORDS)
    with pytest.raises(RuntimeFormatError, match=r"no pre-tokenizer that splits text as this.*closest is") as error:
        name_of(tokenizer)
    scores = {known.name: agreement(tokenizer.backend_tokenizer, known) for known in KNOWN}
    closest = max(scores, key=scores.__getitem__)
    assert f"same tokens for {scores[closest]} of {len(SAMPLE)}" in str(error.value)
    assert f"Pass --pre-tokenizer {closest} " in str(error.value)
    assert name_of(tokenizer, "qwen2") == "qwen2"
    with pytest.raises(RuntimeFormatError, match=r"no pre-tokenizer 'gpt2'; choose one of gpt-2, "):
        name_of(tokenizer, "gpt2")


def test_a_space_put_in_front_is_another_way() -> None:
    with pytest.raises(RuntimeFormatError, match="no pre-tokenizer"):
        name_of(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)))
