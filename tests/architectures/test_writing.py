from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.llama import LLAMA
from loraprune.architectures.spec import MemberSpec
from loraprune.architectures.writing import spec_text, spec_values


def test_what_is_as_it_would_be_anyway_is_not_written() -> None:
    values = spec_values(replace(LLAMA, decoder=None, heads_divide_hidden=False, relaxed_class=None, stream=None))
    assert set(values) == {"model_type", "stacks"}
    heads = values["stacks"][0]["dimensions"][0]
    assert heads == {
        "kind": "heads",
        "members": {"self_attn.q_proj": "query", "self_attn.k_proj": "kv", "self_attn.v_proj": "kv"},
        "consumer": {"self_attn.o_proj": "query"},
        "widths": {"num_key_value_heads": "groups", "num_attention_heads": "queries"},
    }


def test_the_config_keys_and_fixed_values_that_differ_are_written() -> None:
    values = spec_values(replace(LLAMA, config=replace(LLAMA.config, heads="n_head"), fixed={"tied": False}))
    assert (values["config"], values["fixed"]) == ({"heads": "n_head"}, {"tied": False})


def test_a_module_with_two_members_is_written_as_a_list() -> None:
    router = MemberSpec(module="gate", axis="output", segments=(("one",),))
    members = (router, replace(router, parameter="correction"))
    channels = replace(LLAMA.stacks[0].dimensions[-1], members=members)
    (values,) = spec_values(replace(LLAMA, stacks=(replace(LLAMA.stacks[0], dimensions=(channels,)),)))["stacks"][0][
        "dimensions"
    ]
    assert values["members"] == [{"gate": "one"}, {"gate": {"segments": "one", "parameter": "correction"}}]


def test_lists_of_units_stand_on_one_line() -> None:
    fused = MemberSpec(module="qkv", axis="output", segments=(("query", "kv"), ("kv",)))
    heads = replace(LLAMA.stacks[0].dimensions[0], members=(fused,))
    text = spec_text(replace(LLAMA, stacks=(replace(LLAMA.stacks[0], dimensions=(heads,)),)))
    assert "qkv: [[query, kv], kv]\n" in text
