from __future__ import annotations

import pytest
import torch
from benchmarks.memory_model import small_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from loraprune.checkpoint.source import ModelSource
from loraprune.importance.configs import Fisher, Taylor
from loraprune.measure.estimation.config import EstimateConfig
from loraprune.measure.estimation.forward import forward_size
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.measure.estimation.simulated_step import SimulatedStep, StepSettings, simulate
from loraprune.tasks.options import LoraOptions

ROWS, TOKENS = 2, 64


def simulated(models: ShapeModels, **changes: object) -> SimulatedStep:
    config = EstimateConfig(device="cpu", lora=LoraOptions(r=8))
    model, structure = models.adapted(len(models.structure.blocks), None, torch.float32, config)
    values = {"inputs": models.inputs(ROWS, TOKENS), "fused": True, "criterion": None, "autocast": False, **changes}
    return simulate(model, structure, StepSettings(**values))


@pytest.fixture(scope="module")
def models() -> ShapeModels:
    return ShapeModels.of(ModelSource(name="model", config=small_config("llama")), None, ())


def test_a_forward_pass_has_the_operations_of_its_matrix_products(models: ShapeModels) -> None:
    config = models.source.config
    model, structure = models.pruned(4, None, torch.float32)
    found = forward_size(model, structure, models.inputs(1, TOKENS), cached=True, depth=4)
    hidden, ffn, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    products = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    attention = 2 * 2 * TOKENS * TOKENS * hidden
    head = 2 * TOKENS * hidden * config.vocab_size
    rotary = found.flops - (4 * (2 * TOKENS * products + attention) + head)
    assert 0 <= rotary <= 2 * TOKENS * config.head_dim
    assert found.cache == 4 * TOKENS * 2 * kv * 4


def test_operations_are_those_that_torch_counts_in_a_real_step(models: ShapeModels) -> None:
    config = models.source.config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.randint(config.vocab_size, (ROWS, TOKENS))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    shapes, structure = models.pruned(4, None, torch.float32)
    found = forward_size(shapes, structure, models.inputs(ROWS, TOKENS), cached=False, depth=4)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_checkpointing_keeps_only_what_enters_each_block(models: ShapeModels) -> None:
    hidden = ROWS * TOKENS * models.source.config.hidden_size * 4
    full = simulated(models, checkpointing=True)
    assert full.starts["forward 2"] - full.starts["forward 1"] == pytest.approx(hidden, rel=0.05)
    kept = simulated(models, checkpointing=False)
    assert kept.activations > 4 * full.activations
    # Each block is computed once more.
    assert sum(full.flops.values()) > sum(kept.flops.values())


def test_gates_add_one_product_of_a_consumer_and_no_stored_activation(models: ShapeModels) -> None:
    plain, gated = (
        simulated(models, checkpointing=False),
        simulated(models, checkpointing=False, criterion=Fisher()),
    )
    assert gated.activations == pytest.approx(plain.activations, rel=0.02)
    extra = max(gated.peaks.values()) - max(plain.peaks.values())
    assert extra <= ROWS * TOKENS * models.source.config.intermediate_size * 4 * 1.5


def test_gradients_that_wait_are_as_large_as_the_weights(models: ShapeModels) -> None:
    taylor = Taylor()
    waiting = simulated(models, micro_batches=2, criterion=taylor)
    at_once = simulated(models, micro_batches=1, criterion=taylor)
    weights = sum(d.num_parameters for d in models.structure) * 4
    assert waiting.left == pytest.approx(weights, rel=0.2)
    assert waiting.starts["update"] == waiting.starts["forward"]
    assert at_once.left == 0
    assert at_once.starts["update"] - at_once.starts["forward"] < 0.2 * weights


def test_a_model_is_left_as_it_was(models: ShapeModels) -> None:
    model, structure = models.adapted(4, None, torch.bfloat16, EstimateConfig())
    before = {name: (parameter.shape, parameter.dtype) for name, parameter in model.named_parameters()}
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())
    implementation = model.config._attn_implementation
    run = StepSettings(inputs=models.inputs(1, 16), fused=True)
    first = simulate(model, structure, run)
    assert {name: (p.shape, p.dtype) for name, p in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()) == hooks
    assert model.config._attn_implementation == implementation
    assert simulate(model, structure, run).peaks == first.peaks
