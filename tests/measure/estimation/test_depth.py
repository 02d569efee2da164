from __future__ import annotations

import pytest
import torch
from benchmarks.memory_model import BF16, FULL, settings, small_config

from loraprune.checkpoint.source import ModelSource
from loraprune.measure.estimation.depth import FEW, StepSize, step_size
from loraprune.measure.estimation.shape_models import ShapeModels
from loraprune.measure.estimation.simulated_step import StepSettings, simulate

DEPTH = 7


def size_of(
    family: str, criterion: str | None, blocks: int, micro_batches: int, full: bool, quantization: str | None = None
) -> StepSize:
    """A step of a model of seven blocks, seen from one with so many."""
    further = {**BF16, **(FULL if full else {})}
    further["quantization"] = quantization
    run = settings(criterion or "fisher", 2, 32, gradient_accumulation_steps=micro_batches, **further)
    depth = {"n_layer": DEPTH} if family == "gpt2" else {"num_hidden_layers": DEPTH}
    models = ShapeModels.of(ModelSource(name="model", config=small_config(family, vocab_size=64, **depth)), None, ())
    model, structure = models.adapted(blocks, None, torch.bfloat16, run)
    ids = models.inputs(2, 32)["input_ids"]
    step = StepSettings(
        inputs={"input_ids": ids, "use_cache": False},
        labels=ids,
        fused=False,
        checkpointing=full,
        micro_batches=micro_batches,
        criterion=run.pruning.criterion if criterion else None,
    )
    return step_size(simulate(model, structure, step), DEPTH)


@pytest.mark.parametrize(
    ("family", "criterion", "micro_batches", "full"),
    [
        ("llama", None, 1, False),
        ("llama", "fisher", 1, True),
        ("llama", "taylor", 2, False),
        ("llama", "lora", 2, True),
        ("gpt2", "fisher", 1, False),
    ],
)
def test_three_blocks_say_what_seven_take(family: str, criterion: str | None, micro_batches: int, full: bool) -> None:
    few = size_of(family, criterion, FEW, micro_batches, full)
    whole = size_of(family, criterion, DEPTH, micro_batches, full)
    assert_alike(few, whole)


@pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit", "torchao-int8"])
@pytest.mark.parametrize("full", [True, False])
def test_three_quantized_blocks_say_what_seven_take(quantization: str, full: bool) -> None:
    few, whole = (size_of("llama", "fisher", blocks, 1, full, quantization) for blocks in (FEW, DEPTH))
    assert_alike(few, whole)


def assert_alike(few: StepSize, whole: StepSize) -> None:
    assert few.peak == pytest.approx(whole.peak, rel=2e-3)
    assert few.activations == pytest.approx(whole.activations, rel=2e-3)
    assert few.flops == whole.flops
    assert (few.weights, few.adapter, few.states) == (whole.weights, whole.adapter, whole.states)
