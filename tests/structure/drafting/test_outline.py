from __future__ import annotations

import pytest
import torch
from tests.structure.drafting.models import builder
from tests.zoo import ROWS
from torch import nn

from loraprune.architectures import spec_for
from loraprune.structure.describe import describe
from loraprune.structure.drafting import Layer, outline
from loraprune.structure.drafting.outline import layers_of

BY_NAME = {row.name: row for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_blocks_of_every_family_are_found(row) -> None:
    config = row.config()
    model = builder(row)(config)
    stacks = outline(model)
    assert [stack.path for stack in stacks] == [stack.blocks for stack in spec_for(config).stacks]
    blocks = [sorted(block for kind in stack.kinds for block in kind.blocks) for stack in stacks]
    assert sorted(block for found in blocks for block in found) == sorted(describe(model).blocks)


def test_the_layers_of_a_block_come_with_their_sides() -> None:
    (stack,) = outline(builder(BY_NAME["gpt2"])(BY_NAME["gpt2"].config()))
    layers = {layer.module: layer for layer in stack.kinds[0].layers}
    # Conv1D stores its weight the other way round.
    width, inner = layers["ln_1"].outputs, layers["mlp.c_fc"].outputs
    assert layers["mlp.c_fc"] == Layer(
        module="mlp.c_fc",
        parameter="weight",
        type="Conv1D",
        shape=(width, inner),
        outputs=inner,
        inputs=width,
        bias=True,
    )
    assert layers["ln_1"].inputs is None
    assert (layers["attn.c_attn"].inputs, layers["attn.c_attn"].outputs) == (width, 3 * width)


def test_stacked_experts_are_layers_of_their_own() -> None:
    row = BY_NAME["mixtral"]
    config = row.config()
    (stack,) = outline(builder(row)(config))
    stacked = {layer.name: layer for layer in stack.kinds[0].layers if layer.experts}
    up, down = stacked["mlp.experts gate_up_proj"], stacked["mlp.experts down_proj"]
    assert up.experts == down.experts == config.num_local_experts
    assert (up.inputs, up.outputs) == (config.hidden_size, 2 * config.intermediate_size)
    assert (down.inputs, down.outputs) == (config.intermediate_size, config.hidden_size)


def test_single_parameters_are_shown_with_their_shape() -> None:
    row = BY_NAME["convnext"]
    (stack,) = outline(builder(row)(row.config()))
    first = stack.kinds[0].layers
    assert ("", "layer_scale_parameter", (8,)) in {(layer.module, layer.parameter, layer.shape) for layer in first}
    (depthwise,) = (layer for layer in first if layer.module == "dwconv")
    assert (depthwise.type, depthwise.shape, depthwise.inputs) == ("Conv2d", (8, 1, 7, 7), None)


def test_blocks_are_told_apart_by_their_layers_and_sizes() -> None:
    by_stage = outline(builder(BY_NAME["convnext"])(BY_NAME["convnext"].config()))[0]
    assert [kind.indices for kind in by_stage.kinds] == [(0,), (1,), (2, 3), (4,)]
    encoder, decoder = outline(builder(BY_NAME["t5"])(BY_NAME["t5"].config()))
    assert (encoder.name, decoder.name) == ("encoder", "decoder")
    assert [kind.indices for kind in encoder.kinds] == [(0,), (1,)]  # the first one has the position bias


def test_a_list_of_single_layers_or_of_nothing_is_no_list_of_blocks() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict(
            {
                "heads": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]),
                "none": nn.ModuleList([]),
                "norms": nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4))]),
                "blocks": nn.ModuleList([nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))]),
            }
        )
    assert [stack.path for stack in outline(model)] == ["blocks"]
    assert outline(nn.Linear(2, 2)) == ()


def test_a_weight_without_a_bias_says_so() -> None:
    with_bias, without = layers_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, bias=False)))
    assert (with_bias.bias, without.bias) == (True, False)
