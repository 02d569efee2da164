from __future__ import annotations

import torch
from tests.models import projections, with_lora
from torch import nn

from loraprune.layers.unwrap import base_layer, base_model


def test_a_plain_model_and_a_plain_layer_are_themselves(model):
    assert base_model(model) is model
    assert base_layer(model.lm_head) is model.lm_head


def test_the_model_is_found_under_peft_and_torch_compile(model):
    adapted = with_lora(model)
    assert base_model(adapted) is model
    assert base_model(torch.compile(adapted)) is model
    assert base_model(torch.compile(model)) is model


def test_the_model_is_found_under_data_parallel_wrapping(model, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert base_model(nn.parallel.DistributedDataParallel(with_lora(model))) is model
    finally:
        torch.distributed.destroy_process_group()


def test_the_layer_under_an_adapter_is_found(model):
    plain = projections(model, 0)["q_proj"]
    wrapper = projections(with_lora(model), 0)["q_proj"]
    assert wrapper is not plain
    assert base_layer(wrapper) is plain
