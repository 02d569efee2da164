from __future__ import annotations

import pytest
from peft import get_peft_model
from tests.models import tiny_model
from tests.zoo.experts import ROWS
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from loraprune.structure.describe import describe
from loraprune.tasks.causal_lm import CausalLM
from loraprune.tasks.lora import LoraOptions, adaptable_layers, lora_config, renamed_layers


def a_dense_first_layer():
    """A Qwen3-MoE whose first block has a dense FFN."""
    config = next(row for row in ROWS if row.name == "qwen3_moe").config().to_dict()
    return Qwen3MoeForCausalLM(Qwen3MoeConfig.from_dict({**config, "mlp_only_layers": [0]}))


MODELS = {**{row.name: row.model for row in ROWS}, "qwen3_moe with a dense layer": a_dense_first_layer}
EVERY_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


@EVERY_MODEL
@pytest.mark.parametrize("experts", [False, True], ids=["layers", "layers and experts"])
def test_the_adapter_is_on_every_linear_layer_of_a_group_and_on_experts_only_when_asked_for(make, experts):
    model = make()
    structure = describe(model)
    expected = adaptable_layers(structure, model)
    if experts:
        expected |= {name for name, _ in model.named_modules() if name.endswith("mlp.experts")}
    adapted = get_peft_model(model, lora_config(LoraOptions(r=4, experts=experts), structure, model, CausalLM()))
    wrappers = {name: module for name, module in adapted.get_base_model().named_modules() if hasattr(module, "lora_A")}
    assert {name.removesuffix(".base_layer") for name in wrappers} == expected
    assert {module.r["default"] for module in wrappers.values()} == {4}


def test_a_model_without_experts_keeps_all_of_its_names():
    model = tiny_model()
    assert renamed_layers(adaptable_layers(describe(model), model), model) == set()


def test_a_part_of_the_names_of_an_ffn_is_found_too():
    model = a_dense_first_layer()
    name = "model.layers.0.mlp.up_proj"
    assert renamed_layers([name, "model.layers.0.self_attn.q_proj"], model) == {name}


def test_dropout_is_refused_where_these_layers_cannot_have_it():
    model = a_dense_first_layer()
    with pytest.raises(ValueError, match=r"qwen3_moe model down_proj, gate_proj, up_proj can only be adapted without"):
        lora_config(LoraOptions(dropout=0.1), describe(model), model, CausalLM())


def test_the_criterion_lora_asks_for_adapted_experts():
    model = a_dense_first_layer()
    structure = describe(model)
    with pytest.raises(ValueError, match=r"layers\.1\.expert_channels has none\. Adapt the experts too"):
        lora_config(LoraOptions(), structure, model, CausalLM(), every_group=True)
    lora_config(LoraOptions(experts=True), structure, model, CausalLM(), every_group=True)
