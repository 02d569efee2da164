from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from tests.structure.drafting.models import builder
from tests.zoo import ROWS
from tests.zoo.layouts import by_layout
from torch import nn
from transformers import PretrainedConfig

from loraprune import architectures
from loraprune.architectures import ArchitectureSpec, register, spec_for
from loraprune.architectures.reading import spec_from
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import PrunableDimension
from loraprune.structure.drafting import draft, outline

BY_NAME = {row.name: row for row in ROWS}


@pytest.fixture
def _registry(monkeypatch):
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))


def draft_of(row, config: PretrainedConfig) -> str:
    build = builder(row)
    return draft(config, outline(build(config)), build, spec_for(config).auto_class)


def spec_of(text: str) -> ArchitectureSpec | None:
    """The description that a draft is as it stands; None where nothing in it is certain."""
    values = yaml.safe_load(text)
    if all(stack["dimensions"] is None for stack in values["stacks"]):
        return None
    return spec_from(values)


def dimensions_of(model: nn.Module, spec: ArchitectureSpec) -> Iterator[PrunableDimension]:
    """All dimensions that a description declares and a model has."""
    register(spec)
    declared = dict.fromkeys(dimension.kind for stack in spec.stacks for dimension in stack.dimensions)
    default = describe(model)
    for kind in declared:
        if kind in (*default.kinds, *default.left_out):
            yield from describe(model, (kind,))


def claim(dimension: PrunableDimension) -> tuple[object, ...]:
    """What a description says of a dimension."""
    members = {(member.module, member.parameter, member.axis, member.segments) for member in dimension.all_members}
    return dimension.consumer, dimension.num_groups, frozenset(members)


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize("row", by_layout(ROWS), ids=lambda row: row.name)
def test_what_a_draft_holds_for_certain_is_what_the_family_s_description_says(row) -> None:
    config = row.config()
    model = builder(row)(config)
    true = {claim(dimension): dimension for dimension in dimensions_of(model, spec_for(config))}
    drafted = spec_of(draft_of(row, config))
    if drafted is None:
        assert row.name.startswith(("phi3", "olmoe"))  # everything is fused, or has a norm over all heads
        return
    found = list(dimensions_of(model, drafted))
    assert found
    for dimension in found:
        assert claim(dimension) in true, dimension.name
        assert dict(dimension.config or {}).items() <= dict(true[claim(dimension)].config or {}).items()


def test_the_draft_of_a_llama_is_complete() -> None:
    text = draft_of(BY_NAME["llama"], BY_NAME["llama"].config())
    assert "TODO" not in text.partition("model_type")[2]
    kinds = [dimension.kind for stack in spec_of(text).stacks for dimension in stack.dimensions]
    assert kinds == ["heads", "channels"]


def test_layers_of_which_nothing_is_known_are_listed_with_their_sizes() -> None:
    row = BY_NAME["bert"]
    text = draft_of(row, row.config())
    hidden = row.config().hidden_size
    assert f"#   attention.self.query: Linear, {hidden} -> {hidden}\n" in text
    assert "# - kind: TODO" in text
    assert "auto_class: AutoModelForMaskedLM\n" in text


def test_a_fused_layout_is_left_to_be_decided() -> None:
    row = BY_NAME["mixtral"]
    config = row.config()
    text = draft_of(row, config)
    inner = config.intermediate_size
    assert f"# TODO mlp.experts gate_up_proj has {2 * inner} outputs, but {inner} are read." in text
    assert "experts: num_local_experts\n" in text
    decided = text.replace("      # ", "      ").replace("segments: TODO", "segments: [channel, channel]")
    start = decided.index("      - kind: expert_channels")
    (dimension,) = yaml.safe_load(decided[start : decided.index("      TODO mlp:")])
    assert dimension["members"] == {"mlp.experts": {"segments": ["channel", "channel"], "parameter": "gate_up_proj"}}
    assert (dimension["strata"], dimension["widths"]) == ("experts", {"intermediate_size": "stratum"})


def test_a_position_bias_that_only_the_first_block_has_is_not_overlooked() -> None:
    row = BY_NAME["t5"]
    text = draft_of(row, row.config())
    assert text.count("relative_attention_bias (Embedding, 4) changes as well") == 2  # encoder and decoder
    assert "auto_class: AutoModelForSeq2SeqLM\n" in text


def test_a_dimension_that_only_some_blocks_have_is_optional() -> None:
    row = BY_NAME["qwen2_moe"]
    spec = spec_of(draft_of(row, row.config()))
    optional = {dimension.consumer.module: dimension.optional for dimension in spec.stacks[0].dimensions}
    assert optional["mlp.shared_expert.down_proj"]
    assert not optional["self_attn.o_proj"]


def test_a_model_without_blocks_gets_a_start_that_says_so() -> None:
    config = PretrainedConfig(hidden_size=4)
    text = draft(config, (), lambda _: nn.Linear(4, 4), "AutoModel")
    assert yaml.safe_load(text)["stacks"] == "TODO"
