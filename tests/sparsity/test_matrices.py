from __future__ import annotations

import pytest
import torch
from tests.models import tiny_model
from tests.zoo import ROWS
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.pytorch_utils import Conv1D

from loraprune.sparsity.matrices import Matrix, matrices_of
from loraprune.structure.describe import describe

ROW = {row.name: row for row in ROWS}


def matrices(model, layer=0):
    return list(matrices_of(model, describe(model).blocks[layer]))


def gpt_oss():
    """A family whose experts stand the other way round."""
    config = GptOssConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        num_local_experts=3,
        num_experts_per_tok=2,
        pad_token_id=None,
    )
    return GptOssForCausalLM(config).eval()


def test_the_matrices_of_a_llama_block_are_its_seven_projections_in_order(model):
    found = matrices(model, 1)
    assert [matrix.name for matrix in found] == [
        *(f"model.layers.1.self_attn.{letter}_proj" for letter in "qkvo"),
        *(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert [matrix.kind for matrix in found] == [matrix.name.removeprefix("model.layers.1.") for matrix in found]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("phi3", {"self_attn.qkv_proj": (64, 32), "self_attn.o_proj": (32, 32), "mlp.gate_up_proj": (48, 32)}),
        ("gpt_neox", {"attention.query_key_value": (96, 32), "attention.dense": (32, 32)}),
        ("falcon, new", {"self_attention.query_key_value": (64, 32)}),
        ("mpt", {"attn.Wqkv": (96, 32), "ffn.up_proj": (128, 32), "ffn.down_proj": (32, 128)}),
        ("gpt2, untied", {"attn.c_attn": (96, 32), "mlp.c_fc": (24, 32), "mlp.c_proj": (32, 24)}),
        ("mixtral", {"mlp.experts.gate_up_proj[3]": (64, 32), "mlp.experts.down_proj[0]": (32, 32)}),
        ("convnext", {"pwconv1": (32, 8), "pwconv2": (8, 32)}),
    ],
)
def test_fused_and_stacked_layers_are_matrices_of_outputs_by_inputs(row, expected):
    model = ROW[row].model()
    block = describe(model).blocks[0]
    found = {matrix.name.removeprefix(f"{block}."): tuple(matrix.weight_oi().shape) for matrix in matrices(model)}
    assert expected.items() <= found.items()


@pytest.mark.parametrize("name", ["llama", "gpt2, untied", "gpt_neox"])
def test_a_row_of_a_matrix_makes_one_output_of_its_layer(name):
    for matrix in matrices(ROW[name].model()):
        x = torch.randn(5, matrix.weight_oi().shape[1])
        bias = matrix.module.bias
        expected = matrix.module(x) - (0 if bias is None else bias)
        torch.testing.assert_close(x @ matrix.weight_oi().T, expected, rtol=1e-4, atol=1e-4)


def test_only_gpt2_stores_its_layers_the_other_way_round_here():
    kinds = {name: {type(matrix.module) for matrix in matrices(ROW[name].model())} for name in ("llama", "gpt2")}
    assert kinds == {"llama": {nn.Linear}, "gpt2": {Conv1D}}


@pytest.mark.parametrize("make", [ROW["mixtral"].model, gpt_oss], ids=["mixtral", "gpt_oss"])
def test_a_row_of_an_experts_matrix_makes_one_of_its_outputs(make):
    model = make()
    experts = model.model.layers[0].mlp.experts
    found = [matrix for matrix in matrices_of(model, "model.layers.0") if matrix.expert is not None]
    count, width = len(experts.down_proj), model.config.hidden_size
    assert [(matrix.parameter, matrix.expert) for matrix in found] == [
        (parameter, expert) for parameter in ("gate_up_proj", "down_proj") for expert in range(count)
    ]
    assert experts.is_transposed == (make is gpt_oss)
    # The layer itself, with one token for one expert, and its own gate.
    for expert in range(count):
        up, down = (matrix for matrix in found if matrix.expert == expert)
        x = torch.randn(1, width)
        bias = [
            getattr(experts, f"{name}_bias")[expert] if experts.has_bias else 0
            for name in (up.parameter, down.parameter)
        ]
        inside = experts._apply_gate(x @ up.weight_oi().T + bias[0])
        expected = experts(x, torch.tensor([[expert]]), torch.ones(1, 1))
        torch.testing.assert_close(inside @ down.weight_oi().T + bias[1], expected, rtol=1e-4, atol=1e-4)


def test_the_experts_of_the_two_orientations_are_not_square():
    experts = gpt_oss().model.layers[0].mlp.experts
    assert experts.gate_up_proj.shape == (3, 16, 48)
    assert experts.down_proj.shape == (3, 24, 16)


def test_a_gate_with_a_single_output_is_no_matrix_and_neither_is_a_router():
    model = ROW["qwen2_moe"].model()
    gate = model.model.layers[1].mlp.shared_expert_gate
    assert gate.weight.shape[0] == 1
    found = matrices(model, 1)
    modules = {matrix.module for matrix in found}
    assert gate not in modules
    assert model.model.layers[1].mlp.gate not in modules
    assert {name for name in (matrix.module_name for matrix in found) if "shared_expert." in name} == {
        f"model.layers.1.mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_embeddings_norms_and_heads_are_none(row):
    model = row.model()
    blocks = describe(model).blocks
    found = [matrix for block in blocks for matrix in matrices_of(model, block)]
    names = [matrix.name for matrix in found]
    assert len(names) == len(set(names))
    storages = {getattr(matrix.module, matrix.parameter).data_ptr() for matrix in found}
    for name, module in model.named_modules():
        outside = not any(name == block or name.startswith(f"{block}.") for block in blocks)
        for parameter in module.parameters(recurse=False):
            if outside or isinstance(module, nn.Embedding) or "Norm" in type(module).__name__ or parameter.dim() == 1:
                assert parameter.data_ptr() not in storages, name
    assert all(matrix.weight_oi().dim() == 2 for matrix in found)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_what_is_written_is_in_the_model_and_nowhere_else(name):
    model = ROW[name].model()
    for matrix in matrices(model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        matrix.write_(torch.zeros_like(matrix.weight_oi()))
        assert not matrix.weight_oi().any()
        after = model.state_dict()
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert changed == {f"{matrix.module_name}.{matrix.parameter}"}
        (key,) = changed
        lost = int((before[key] != after[key]).sum())
        assert lost == matrix.weight_oi().numel()


def test_zeros_stay_zero_in_the_dtype_of_the_model():
    model = tiny_model("llama", dtype=torch.bfloat16)
    matrix = matrices(model)[0]
    weight = matrix.weight_oi().float()
    weight[:, ::2] = 0
    matrix.write_(weight)
    assert matrix.weight_oi().dtype == torch.bfloat16
    assert torch.equal(matrix.weight_oi().float(), weight)


def test_a_model_without_weights_has_the_same_matrices():
    with torch.device("meta"):
        shapes = ROW["mixtral"].auto.from_config(ROW["mixtral"].config())
    real = ROW["mixtral"].model()
    assert [(matrix.name, matrix.weight_oi().shape) for matrix in matrices(shapes)] == [
        (matrix.name, matrix.weight_oi().shape) for matrix in matrices(real)
    ]


def test_matrices_are_told_apart_by_their_expert():
    model = ROW["mixtral"].model()
    experts = model.model.layers[0].mlp.experts
    matrix = Matrix(experts, "model.layers.0.mlp.experts", "model.layers.0", "down_proj", 3)
    assert matrix.name == "model.layers.0.mlp.experts.down_proj[3]"
    assert matrix.kind == "mlp.experts.down_proj"
    assert torch.equal(matrix.weight_oi(), experts.down_proj[3])
