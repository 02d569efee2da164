from __future__ import annotations

from typing import Any

import torch
from tests.structure.drafting.models import Attention, builder
from tests.zoo import ROWS
from torch import nn
from transformers import PretrainedConfig

from loraprune.structure.drafting.couplings import Coupling, couplings_of
from loraprune.structure.drafting.experiments import Experiments
from loraprune.structure.drafting.outline import outline

BY_NAME = {row.name: row for row in ROWS}


def found_in(config: PretrainedConfig, build: Any) -> tuple[dict[str, Coupling], list[str]]:
    """Couplings of the first block by their consumer, and the layers that are left."""
    stacks = outline(build(config))
    found = couplings_of(stacks[0].kinds[0], Experiments(config, stacks, build))
    return {coupling.consumer.name: coupling for coupling in found.couplings}, [layer.name for layer in found.left]


def units(coupling: Coupling) -> dict[str, str | None]:
    return {layer.name: unit for layer, unit in coupling.units}


class Family:
    """A family made on the spot: a config with these numbers, and blocks of one module."""

    def __init__(self, block: Any, **numbers: Any) -> None:
        self.config = PretrainedConfig(hidden_size=32, **numbers)
        self._block = block

    def build(self, config: PretrainedConfig) -> nn.Module:
        with torch.device("meta"):
            return nn.ModuleDict(
                {
                    "embed": nn.Embedding(10, config.hidden_size),
                    "blocks": nn.ModuleList([self._block(config) for _ in range(2)]),
                }
            )


def mlp(config: Any) -> nn.Module:
    return nn.ModuleDict(
        {"up": nn.Linear(config.hidden_size, config.ffn), "down": nn.Linear(config.ffn, config.hidden_size)}
    )


def test_a_number_that_sets_the_inputs_of_one_layer_and_the_outputs_of_others_couples_them() -> None:
    family = Family(mlp, ffn=48)
    couplings, left = found_in(family.config, family.build)
    assert set(couplings) == {"down"}
    assert (couplings["down"].kind, units(couplings["down"])) == ("channels", {"up": "channel"})
    assert couplings["down"].widths == (("ffn", "groups"),)
    assert couplings["down"].is_certain
    assert left == []


def test_a_number_that_is_a_factor_couples_layers_but_is_no_width() -> None:
    def scaled(config: Any) -> nn.Module:
        inner = config.hidden_size * config.ratio
        return nn.ModuleDict({"up": nn.Linear(config.hidden_size, inner), "down": nn.Linear(inner, config.hidden_size)})

    family = Family(scaled, ratio=3)
    couplings, _ = found_in(family.config, family.build)
    assert couplings["down"].widths == ()
    assert "no config can state" in couplings["down"].evidence


def test_the_width_of_the_stream_couples_nothing() -> None:
    def square(config: Any) -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(config.stream, 7), "b": nn.Linear(7, config.stream)})

    family = Family(square, stream=20)
    family.build = lambda config: nn.ModuleDict(  # the stream has a name of its own in this family
        {"embed": nn.Embedding(10, config.stream), "blocks": nn.ModuleList([square(config) for _ in range(2)])}
    )
    couplings, left = found_in(family.config, family.build)
    assert couplings == {}
    assert left == ["a", "b"]


def test_heads_are_told_from_their_width_by_the_names_that_all_configs_share() -> None:
    row = BY_NAME["llama"]
    couplings, left = found_in(row.config(), builder(row))
    heads = couplings["self_attn.o_proj"]
    assert heads.kind == "heads"
    assert units(heads) == {"self_attn.q_proj": "query", "self_attn.k_proj": "kv", "self_attn.v_proj": "kv"}
    assert heads.widths == (("num_key_value_heads", "groups"), ("num_attention_heads", "queries"))
    assert left == []


def test_a_fused_layer_and_a_norm_over_all_heads_leave_something_to_decide() -> None:
    numbers = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    family = Family(Attention, **numbers)
    couplings, _ = found_in(family.config, family.build)
    assert units(couplings["o"]) == {"q": "query", "kv": None, "norm": None}
    assert not couplings["o"].is_certain


def test_layers_whose_width_no_number_sets_are_coupled_by_their_shapes() -> None:
    row = BY_NAME["convnext"]
    couplings, left = found_in(row.config(), builder(row))
    assert {name: units(coupling) for name, coupling in couplings.items()} == {"pwconv2": {"pwconv1": "channel"}}
    assert couplings["pwconv2"].widths == ()
    assert left == []


def test_square_layers_are_left() -> None:
    row = BY_NAME["bert"]
    couplings, left = found_in(row.config(), builder(row))
    assert set(couplings) == {"output.dense"}
    assert left == [*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense"]
