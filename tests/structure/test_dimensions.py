"""A member of a dimension finds its layer and weight in a model, however the model is wrapped."""

from __future__ import annotations

import pytest
import torch
from tests.models import randomize_, tiny_model, with_lora
from tests.zoo import ROWS
from transformers import PreTrainedModel

from loraprune.structure.describe import describe


def of_row(name: str) -> PreTrainedModel:
    return next(row for row in ROWS if row.name == name).model()


def test_the_weight_is_that_of_the_plain_layer() -> None:
    model = tiny_model()
    for dimension in describe(model):
        layer = model.get_submodule(dimension.consumer.module)
        assert dimension.consumer.layer(model) is layer
        assert torch.equal(dimension.consumer.weight(model), layer.weight)
        assert dimension.consumer.weight(model).data_ptr() != layer.weight.data_ptr()


def test_under_lora_the_weight_has_its_update() -> None:
    model = with_lora(tiny_model(), r=3, lora_alpha=6)
    randomize_(model, seed=1)
    consumer = describe(model).dimensions[0].consumer
    layer = consumer.layer(model)
    update = 2 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(consumer.weight(model), layer.base_layer.weight + update)


def test_a_weight_that_is_stored_as_in_out_is_turned() -> None:
    model = of_row("gpt2")
    consumer = describe(model).of_kind("channels")[0].consumer
    assert torch.equal(consumer.weight(model), model.get_submodule(consumer.module).weight.T)


def test_stacked_experts_have_no_single_weight() -> None:
    model = of_row("mixtral")
    consumer = next(dimension for dimension in describe(model) if dimension.of_experts).consumer
    with pytest.raises(ValueError, match="is not the weight of a linear layer"):
        consumer.weight(model)
