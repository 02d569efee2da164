from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub.errors import StrictDataclassError
from tests.models import FAMILIES, tiny_config, tiny_model

from loraprune.structure.describe import describe
from loraprune.structure.widths import default_channel_multiple, kept_in, legal_widths

# Twelve query heads on six KV heads: eight or ten query heads would not divide the hidden size.
SHAPE = {"hidden_size": 36, "num_attention_heads": 12, "num_key_value_heads": 6}


def config_with(family, kv_heads):
    return tiny_config(family, **{**SHAPE, "num_attention_heads": 2 * kv_heads, "num_key_value_heads": kv_heads})


def test_a_llama_may_have_the_head_counts_that_its_config_accepts():
    legal = legal_widths(describe(tiny_model(**SHAPE))).counts["heads"]
    assert legal == (1, 2, 3, 6)
    for count in range(1, 7):
        if count in legal:
            assert config_with("llama", count).num_key_value_heads == count
        else:
            with pytest.raises(StrictDataclassError, match="hidden size"):
                config_with("llama", count)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_other_families_may_have_any_head_count(family):
    legal = legal_widths(describe(tiny_model(family, **SHAPE))).counts["heads"]
    assert legal == (1, 2, 3, 4, 5, 6)
    for count in legal:
        assert config_with(family, count).num_key_value_heads == count


def test_any_head_count_can_be_asked_for():
    structure = describe(tiny_model(**SHAPE))
    assert legal_widths(structure, head_counts="any").counts["heads"] == (1, 2, 3, 4, 5, 6)


def test_a_model_whose_own_head_count_is_refused_may_stay_as_it_is():
    structure = replace(describe(tiny_model(**SHAPE)), hidden_size=40)
    assert legal_widths(structure).counts["heads"] == (1, 2, 4, 5, 6)


@pytest.mark.parametrize(
    ("channels", "multiple"),
    [(24, 1), (511, 1), (512, 8), (1023, 8), (1024, 16), (2048, 32), (4096, 64), (8191, 64), (8192, 128), (11008, 128)],
)
def test_the_default_multiple_grows_with_the_ffn(channels, multiple):
    assert default_channel_multiple(channels) == multiple


def test_the_multiple_is_the_default_one_unless_asked_for():
    wide = describe(tiny_model(intermediate_size=512))
    assert legal_widths(wide).channel_multiple == 8
    assert legal_widths(wide, channel_multiple=4).channel_multiple == 4


@pytest.mark.parametrize("multiple", [0, -8, 25])
def test_a_multiple_that_no_width_has_is_refused(structure, multiple):
    with pytest.raises(ValueError, match=rf"multiples of {multiple}: the FFN has 24 channels. Choose .* 1 and 24"):
        legal_widths(structure, channel_multiple=multiple)


def test_the_multiple_may_be_the_whole_ffn(structure):
    assert legal_widths(structure, channel_multiple=24).channel_multiple == 24


def test_layers_of_fewer_experts_keep_as_many_as_a_token_uses():
    structure = describe(tiny_model())
    few = [
        replace(d, kind="experts", num_groups=n, floor=4)
        for d, n in zip(structure.of_kind("heads"), (16, 6), strict=True)
    ]
    assert [kept_in(dimension, 8, 16) for dimension in few] == [8, 4]


def test_head_counts_are_free_where_the_result_has_our_class():
    model = tiny_model(**SHAPE)
    assert legal_widths(describe(model)).counts["heads"] != (1, 2, 3, 4, 5, 6)
    assert legal_widths(describe(model, keep_layers=[0])).counts["heads"] == (1, 2, 3, 4, 5, 6)
    assert legal_widths(replace(describe(model), any_widths=True)).counts["heads"] == (1, 2, 3, 4, 5, 6)
