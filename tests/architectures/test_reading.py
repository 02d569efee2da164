from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from tests.zoo import ROWS

from loraprune.architectures import DescriptionError, read_spec, spec_for
from loraprune.architectures.llama import LLAMA
from loraprune.architectures.reading import spec_from
from loraprune.architectures.spec import ArchitectureSpec, Axis, ConfigKeys, Count, MemberSpec, Number, RowUnit
from loraprune.architectures.values import TODO
from loraprune.architectures.writing import spec_text

LLAMA_TEXT = """
model_type: llama
decoder: model
heads_divide_hidden: true
relaxed_class: mistral
blocks: model.layers
dimensions:
  - kind: heads
    members: {self_attn.q_proj: query, self_attn.k_proj: kv, self_attn.v_proj: kv}
    consumer: {self_attn.o_proj: query}
    widths: {num_key_value_heads: groups, num_attention_heads: queries}
  - kind: query_heads
    members: {self_attn.q_proj: head}
    consumer: {self_attn.o_proj: head}
    widths: {num_attention_heads: groups}
    numbers: {self_attn: {num_key_value_groups: stratum}}
    strata: kv
    default: false
  - kind: channels
    members: {mlp.gate_proj: channel, mlp.up_proj: channel}
    consumer: {mlp.down_proj: channel}
    widths: {intermediate_size: groups}
    fine: true
"""

SMALL = """
model_type: small
blocks: layers
dimensions:
  - kind: channels
    members: {up: channel}
    consumer: {down: channel}
"""


def spec_from_text(text: str) -> ArchitectureSpec:
    return spec_from(yaml.safe_load(text))


def write(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_description_in_short_yaml_is_the_one_in_python(tmp_path: Path) -> None:
    # The stream may be left out: without it the hidden size cannot shrink.
    assert read_spec(write(tmp_path, LLAMA_TEXT)) == replace(LLAMA, stream=None)
    assert read_spec(str(tmp_path / "small.yaml")) == replace(LLAMA, stream=None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_description_survives_being_written_and_read(row, tmp_path: Path) -> None:
    spec = spec_for(row.config())
    assert read_spec(write(tmp_path, spec_text(spec))) == spec


@pytest.mark.parametrize(
    ("said", "segments"),
    [
        ("query", (("query",),)),
        ("[query, kv, kv]", (("query",), ("kv",), ("kv",))),
        ("[[query, kv, kv]]", (("query", "kv", "kv"),)),
        ("[[query, kv], channel]", (("query", "kv"), ("channel",))),
    ],
)
def test_a_list_is_segments_one_after_the_other_and_a_list_in_it_is_what_stands_together(said, segments) -> None:
    spec = spec_from_text(SMALL.replace("up: channel", f"up: {said}"))
    assert spec.stacks[0].dimensions[0].members == (MemberSpec(module="up", axis="output", segments=segments),)


def test_the_long_form_of_a_member_says_everything() -> None:
    long = "{segments: channel, axis: norm, parameter: gain, optional: true, rest: true}"
    expected = MemberSpec(
        module="up", axis="norm", segments=(("channel",),), parameter="gain", optional=True, rest=True
    )
    for text in (
        SMALL.replace("up: channel", f"up: {long}"),
        SMALL.replace("{up: channel}", "[{up: " + long + "}]"),
        SMALL.replace("{up: channel}", "[{module: up, " + long.removeprefix("{") + "]"),
    ):
        assert spec_from_text(text).stacks[0].dimensions[0].members == (expected,)


def test_a_module_may_be_there_twice_in_a_list() -> None:
    text = SMALL.replace(
        "{up: channel}", "[{experts: {segments: one, parameter: a}}, {experts: {segments: one, parameter: b}}]"
    )
    members = spec_from_text(text).stacks[0].dimensions[0].members
    assert [(member.module, member.parameter) for member in members] == [("experts", "a"), ("experts", "b")]


def test_stacks_config_numbers_and_fixed_values_are_read() -> None:
    spec = spec_from_text(
        """
model_type: small
config: {heads: n_head, hidden: width}
fixed: {sliding_window: null, scale: 2}
stacks:
  - blocks: encoder.blocks
    name: encoder
    dimensions:
      - kind: heads
        members: {qkv: [head, head, head]}
        consumer: {out: head}
        numbers:
          attention: {split_size: {count: groups, times: head_dim}, config.n_head: groups}
"""
    )
    assert spec.config == ConfigKeys(heads="n_head", hidden="width")
    assert spec.fixed == {"sliding_window": None, "scale": 2}
    assert (spec.stacks[0].blocks, spec.stacks[0].name) == ("encoder.blocks", "encoder")
    assert spec.stacks[0].dimensions[0].numbers == (
        Number(module="attention", name="split_size", count="groups", times="head_dim"),
        Number(module="attention", name="config.n_head", count="groups"),
    )


def allowed(literal: object) -> str:
    return ", ".join(get_args(literal))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("model_type: small", "mode_type: small", "unknown key 'mode_type'; allowed: model_type, stacks, decoder"),
        ("    members:", "    memebers:", "unknown key 'memebers' in stacks[0].dimensions[0]; allowed: kind, members"),
        ("  - kind: channels", "  - name: channels", "stacks[0].dimensions[0] lacks 'kind'."),
        ("blocks: layers", "decoder: layers", "unknown key 'dimensions'"),
        ("blocks: layers", "blocks: 3", "stacks[0].blocks must be a text, not 3."),
        ("up: channel", "up: chanel", f"dimensions[0].members.up.segments is 'chanel'; allowed: {allowed(RowUnit)}."),
        ("up: channel", "up: [channel, [kv, nil]]", "members.up.segments is 'nil'; allowed:"),
        ("up: channel", "up: []", "members.up.segments must be a list that is not empty, not []."),
        ("up: channel", "up: {axis: rows, segments: one}", f"members.up.axis is 'rows'; allowed: {allowed(Axis)}."),
        ("up: channel", "up: {segment: one}", "unknown key 'segment' in stacks[0].dimensions[0].members.up; allowed:"),
        ("up: channel", "up: {optional: true}", "members.up lacks 'segments'."),
        ("up: channel", "up: {segments: one, optional: 1}", "optional must be true or false, not 1."),
        ("up: channel", "3: channel", "members has the key 3, which is not a text."),
        ("{up: channel}", "up", "members must be a list that is not empty, not 'up'."),
        ("{down: channel}", "{down: channel, up: channel}", "consumer must name one layer"),
        ("{down: channel}", "down", "consumer must be a mapping of names to values, not 'down'."),
        ("{down: channel}", f"{{{TODO}: channel}}", f"module still says {TODO}."),
        ("{down: channel}", f"{{down: {TODO}}}", f"consumer.down.segments still says {TODO}."),
        (
            "    consumer:",
            "    widths: {ffn: all}\n    consumer:",
            f"widths.ffn is 'all'; allowed: {allowed(Count)}.",
        ),
        ("    consumer:", "    numbers: {up: 3}\n    consumer:", "numbers.up must be a mapping of names to values"),
        (
            "    consumer:",
            "    fine: fine\n    consumer:",
            "dimensions[0].fine must be true or false, not 'fine'.",
        ),
        ("    consumer:", "    multiple: a\n    consumer:", "multiple must be a whole number, not 'a'."),
        ("model_type: small", "model_type: small\nconfig: {head: n}", "unknown key 'head' in config; allowed: heads"),
        (SMALL, "- a\n- b", "the description must be a mapping of names to values, not ['a', 'b']."),
        (SMALL, "", "the description must be a mapping of names to values, not None."),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_its_place(tmp_path: Path, right, wrong, message) -> None:
    assert right in SMALL
    path = write(tmp_path, SMALL.replace(right, wrong))
    with pytest.raises(DescriptionError) as caught:
        read_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("{up: channel}", "{up: channel, up: one}"))
    with pytest.raises(DescriptionError, match="the key 'up' occurs twice"):
        read_spec(path)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"missing\.yaml cannot be read"):
        read_spec(tmp_path / "missing.yaml")
    with pytest.raises(DescriptionError, match=r"small\.yaml is not YAML: .*line 1"):
        read_spec(write(tmp_path, "a: [1"))
